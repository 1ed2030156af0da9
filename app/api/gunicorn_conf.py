"""gunicorn's configuration; the reasons stand above the settings."""

import os
import shutil

from app.settings import load_settings

settings = load_settings()

bind = [f"{settings.host}:{settings.port}"]
if settings.private_port:
    bind.append(f"{settings.host}:{settings.private_port}")
workers = settings.web_workers
worker_class = "app.api.gunicorn_worker.Worker"
worker_connections = settings.web_connections
# Each worker builds its own services: connections, threads and XGBoost do not survive a fork.
preload_app = False
# A worker imports Feast and reads the catalog before it serves; on two busy cores that takes a while.
timeout = 60
# Behind the time to drain, the body of a request that is under way may still come.
graceful_timeout = int(settings.shutdown_drain_s) + 30
# Nobody's word is taken for where a request came from, or for its path; see TRUSTED_PROXIES.
forwarded_allow_ips = ""
forwarder_headers = ""
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"lines": {"()": "app.api.request_log.RequestFormatter", "role": "web"}},
    "filters": {"privacy": {"()": "app.api.logs.GunicornPrivacy"}},
    "handlers": {
        "lines": {
            "class": "logging.StreamHandler",
            "formatter": "lines",
            "filters": ["privacy"],
            "stream": "ext://sys.stdout",
        }
    },
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["lines"], "propagate": False},
        # Tells of its own parts when it is imported, before a worker sets up its log.
        "alembic": {"level": "WARNING"},
    },
    "root": {"level": "INFO", "handlers": ["lines"]},
}
keepalive = 75
# Heartbeats in memory: a slow disk must not look like a hung worker.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108  (gunicorn unlinks its file at once)
# All instances of a user would share one control socket.
control_socket_disable = True
logger_class = "app.api.gunicorn_log.GunicornLog"
accesslog = None
errorlog = "-"

# Before anything imports prometheus_client, which reads it once, or Feast, which sets it to its own.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(settings.metrics_dir)


def on_starting(server):
    # Numbers of an earlier run, and its dead workers, would be added to this one's.
    shutil.rmtree(settings.metrics_dir, ignore_errors=True)
    settings.metrics_dir.mkdir(parents=True, mode=0o700)


def on_exit(server):
    shutil.rmtree(settings.metrics_dir, ignore_errors=True)


def child_exit(server, worker):
    from app.api.gunicorn_worker import CONNECTIONS
    from app.api.worker_metrics import retire

    CONNECTIONS.take_back(worker.connections)
    retire(settings.metrics_dir, worker.pid)

# The service: `docker build .`; with what training needs: `docker build --build-arg EXTRAS=training .`
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
# Compiles the loops of a request; what serves has no compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ARG EXTRAS=
WORKDIR /source
COPY . .
RUN helm/image/build /opt/propositions "${EXTRAS}"
RUN /opt/propositions/bin/python -c "import app.features.compiled, app.adapters.compiled_layout"

FROM ${PYTHON}
COPY --from=build /opt/propositions /opt/propositions
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent propositions \
    && install -d -o propositions -g propositions /var/lib/propositions
ENV PATH=/opt/propositions/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    DATA_DIR=/var/lib/propositions TMPDIR=/var/lib/propositions HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/propositions
VOLUME /var/lib/propositions
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('PORT', '8080')}/health/ready\", timeout=2)"]
# gunicorn ends gracefully on SIGTERM.
STOPSIGNAL SIGTERM
CMD ["propositions", "serve"]

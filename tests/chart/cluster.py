"""What controllers and kubelets of a healthy cluster say of objects, at once; and what a test lets fail."""

from dataclasses import dataclass, field

from tests.chart.helm import Manifest


@dataclass
class Cluster:
    """Sets the status of objects. Jobs and pods whose names end with one of `failing` fail."""

    failing: set[str] = field(default_factory=set)

    def live(self, new: Manifest) -> None:
        fails = new["metadata"]["name"].endswith(tuple(self.failing) or ("\0",))
        replicas = new.get("spec", {}).get("replicas", 1)
        observed = {"observedGeneration": new["metadata"]["generation"]}
        counts = dict.fromkeys(
            ("replicas", "readyReplicas", "availableReplicas", "updatedReplicas", "currentReplicas"), replicas
        )
        match new["kind"]:
            case "Job":
                outcome = "Failed" if fails else "Complete"
                new["status"] = {
                    **{"startTime": new["metadata"]["creationTimestamp"]},
                    **({"failed": 1} if fails else {"succeeded": 1}),
                    "conditions": [_true(outcome)],
                }
            case "Pod":
                new["status"] = {"phase": "Failed" if fails else "Succeeded"}
            case "PersistentVolumeClaim":
                new["status"] = {"phase": "Bound"}
            case "Deployment":
                new["status"] = {
                    **observed,
                    **counts,
                    "conditions": [_true("Available"), _true("Progressing", "NewReplicaSetAvailable")],
                }
                del new["status"]["currentReplicas"]
            case "StatefulSet":
                new["status"] = {**observed, **counts, "currentRevision": "1", "updateRevision": "1"}
            case "PodDisruptionBudget":
                new["status"] = {
                    **observed,
                    **{"currentHealthy": 3, "desiredHealthy": 2, "disruptionsAllowed": 1, "expectedPods": 3},
                    "conditions": [_true("DisruptionAllowed")],
                }


def _true(type_: str, reason: str = "AsItShouldBe") -> Manifest:
    return {"type": type_, "status": "True", "reason": reason}

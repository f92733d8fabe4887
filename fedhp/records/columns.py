"""The columns of a run record's tables, in order."""

# Types are spelled out because a round in which every client failed has columns of nulls only.
CLIENTS: dict[str, type] = {
    "round": int,
    "client": int,
    "device_class": str,
    "status": str,
    "failure": str,
    "num_examples": int,
    "memory_budget_bytes": int,
    "memory_predicted_bytes": int,
    "memory_measured_bytes": int,
    "memory_mean_bytes": int,
    "batch_size_first": int,
    "batch_size_last": int,
    "params_received": int,
    "params_sent": int,
    "units_pruned": int,
    "bytes_down": int,
    "bytes_up": int,
    "update_norm": float,
    "train_loss": float,
    "accuracy": float,
    "num_local_test": int,
    "local_accuracy_global": float,
    "local_accuracy_personal": float,
    "seconds": float,
}

ROUNDS: dict[str, type] = {
    "round": int,
    "accuracy": float,
    "loss": float,
    "local_accuracy_global": float,
    "local_accuracy_personal": float,
    "params": int,
    "compression": float,
    "training_bytes": int,
    "num_replies": int,
    "num_failures": int,
    "budget_violations": int,
    "bytes_down": int,
    "bytes_up": int,
    "seconds": float,
    "evaluation_seconds": float,
    "structure": str,
    "votes": str,
}

PARTITION: dict[str, type] = {"client": int, "label": int, "count": int, "owner": str}

# Columns that records of earlier versions lack, and that may be null anyway.
LATER = {
    "owner",
    "votes",
    "update_norm",
    "num_local_test",
    "local_accuracy_global",
    "local_accuracy_personal",
}
# And keys of ``summary.json`` likewise.
LATER_SUMMARY = ("local_accuracy_global", "local_accuracy_personal", "cause")

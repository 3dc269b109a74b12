"""The names of the files of a run directory. This module imports no torch, which would take seconds."""

CONFIG_NAME = "config.yaml"
IDENTITIES_NAME = "identities.parquet"  # label and name of the head's classes, where the set has names
LOCK_NAME = "lock"  # held by the job that writes into the directory
METRICS_NAME = "metrics.jsonl"  # a line of figures a logged step
BAD_SAMPLES_NAME = "bad_samples.jsonl"  # samples that could not be used
CHECKPOINTS_NAME = "checkpoints"  # directory of one directory a checkpoint
PROGRESS_NAME = "progress.json"  # in a checkpoint: where the run stood
METADATA_NAME = ".metadata"  # in a checkpoint: which tensors are in it, and where
BEST_NAME = "best.json"  # beside the checkpoints: which one is the best
SUMMARY_NAME = "summary.json"
REPORT_NAME = "report.html"
ONNX_NAME = "model.onnx"
WANDB_ID_NAME = "wandb_id"  # by which a resumed run goes on in W&B
WANDB_DIR_NAME = "wandb"  # what W&B keeps
JOB_NAME = "job"  # which start of the job made the run
SLURM_SCRIPT_NAME = "slurm.sh"
SLURM_JOBS_NAME = "slurm_jobs"
SLURM_LOG_NAME = "slurm-%j.log"  # %j: number of the job

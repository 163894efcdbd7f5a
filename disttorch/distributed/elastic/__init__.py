"""Names of PyTorch's elastic launcher that scripts import. Jobs are not restarted here: the launcher
ends a job that fails, and a checkpoint is where the next one begins."""

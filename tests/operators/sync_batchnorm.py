"""The record of layers/sync_batchnorm.py. Its calls need several processes: test_sync_batchnorm.py."""

from tests.support.record import Arguments, Mutant, Operator

MUTANTS = (
    Mutant("a process uses its own sums as the total", "layers/sync_batchnorm.py", "of_all = _sum(_gathered(sums, group)).view(sums.shape)", "of_all = sums", "sync_batchnorm"),
    Mutant("the total is divided by one process's pixels", "layers/sync_batchnorm.py", "w, of_all, eps, pixels)", "w, of_all, eps)", "sync_batchnorm"),
    Mutant("the last process's sums are missing", "layers/sync_batchnorm.py", "ops.channel_sum(parts.reshape(len(parts), -1, 1, 1))", "ops.channel_sum(parts[:-1].reshape(len(parts) - 1, -1, 1, 1))", "sync_batchnorm"),
    Mutant("every process reports the same number of pixels", "layers/sync_batchnorm.py", "mean.new_full((1,), _pixels(x))", "mean.new_full((1,), 1)", "sync_batchnorm"),
    Mutant("convert_sync_batchnorm returns torch's class", "layers/sync_batchnorm.py", "converted.__class__ = cls", "pass", "sync_batchnorm"),
    Mutant("evaluation waits for other processes", "layers/sync_batchnorm.py", "_others(module) if module.training else None", "_others(module)", "sync_batchnorm"),
)  # fmt: skip
OPERATOR = Operator(modules={"SyncBatchNorm": Arguments({"num_features": 2})}, mutants=MUTANTS)

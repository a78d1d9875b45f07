# `make` says what there is. Everything is built in .venv, from the versions in constraints.txt; `make gpu` builds nothing.

PYTHON ?= python3
TRITON ?=
MINUTES ?= 10
OPS ?=
SEED ?= 0
BENCH ?= --quick
OUT ?=

BIN := .venv/bin
CONVOLUTIONS := $(addprefix tests/test_,conv2d.py conv_transpose2d.py fused.py fuse.py hard_inputs.py models.py moduleinfo.py)
BUILT := .venv/built
# The machine with a GPU that results come from has these; `make rehearse` and `make gpu-cache` stand for it.
REHEARSED := torch==2.11.0 triton==3.6.0
PYTHON_3_12 ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null \
	|| ls $(HOME)/.pyenv/versions/3.12*/bin/python3.12 2>/dev/null | tail -n 1)
REHEARSAL := .venv/rehearsal
ON_A_GPU := env -u TRITON_INTERPRET PYTHONPATH=$(CURDIR) $(PYTHON)
SEES_A_GPU = @$(PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null \
	|| { echo 'make $@: $(PYTHON) sees no GPU: PYTHON=... names one whose torch does' >&2; exit 1; }
SANITIZED = $(PYTHON) -m pytest -q -p no:cacheprovider tests/test_bounds.py -k test_exact_allocations

.PHONY: help demo notes test test-long mutants fuzz precision lint types compile-report gpu gpu-cache rehearse bench sanitize clean

help:
	@echo 'make demo             LeNet learns handwritten digits on our kernels alone; draws what it learned'
	@echo 'make notes            a walk from a first network to AlexNet and its initialisation, printed'
	@echo 'make test             every operator against torch in float64, some minutes'
	@echo 'make test-long        all of torch'"'"'s own test inputs against our operators, and the tests of convolutions by the'
	@echo '                      kernels for Hopper and with TF32 as a GPU has it, a quarter of an hour'
	@echo 'make mutants          breaks the kernels in dozens of ways, one by one, and sees that the tests notice'
	@echo 'make fuzz             draws cases and compares with torch: MINUTES=10 OPS=conv2d,linear SEED=0'
	@echo 'make precision        how exact every operator is, in units of torch'"'"'s own error'
	@echo 'make lint             ruff and mypy'
	@echo 'make compile-report   compiles every kernel for four GPUs without one: registers, spills, shared memory;'
	@echo '                      TRITON=3.6.0 make compile-report for another version of Triton'
	@echo 'make gpu              what the GPU of this machine makes of trinn, in nine minutes: whether it computes right, and how'
	@echo '                      fast; with the torch and Triton of $$PYTHON as they are, into bench/results/ or OUT=FOLDER'
	@echo 'make gpu-cache        compiles beforehand, without a GPU, what make gpu launches on an H200: gpu-cache.tar.xz'
	@echo 'make rehearse         runs what make gpu runs as far as that goes without a GPU, with the versions of the H200'"'"'s machine'
	@echo 'make bench            times operators and networks against torch on the GPU, with $$PYTHON, in less than 8 minutes;'
	@echo '                      BENCH= for all of it, or the arguments of python -m bench, whose --help says what there is;'
	@echo '                      BENCH="conv --tune" checks, tunes and times convolutions, in less than 25 minutes'
	@echo 'make sanitize         every operator under compute-sanitizer: memcheck, racecheck, initcheck; on a GPU, with $$PYTHON'
	@echo 'make clean            removes what the others made'
	@echo
	@echo 'PYTHON=... names the Python to use, 3.10 or newer; now $(PYTHON)'

demo: $(BUILT)
	$(BIN)/python examples/train_digits.py

notes: $(BUILT)
	$(BIN)/python examples/notes.py

test: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test-long: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'long or torchs_material'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --tma $(CONVOLUTIONS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --tf32 $(CONVOLUTIONS)

mutants: $(BUILT)
	$(BIN)/python -m tests.mutants

fuzz: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) --shrink $(if $(OPS),--ops $(OPS))

precision: $(BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.precision

lint: $(BUILT) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The folders as the package they become, for type checkers.
types:
	@mkdir -p .typing/trinn
	@ln -sfn $(addprefix ../../,kernels layers models trinn/__init__.py trinn/env.py trinn/py.typed) .typing/trinn

compile-report: $(BUILT) $(if $(TRITON),.venv/triton-$(TRITON))
	$(if $(TRITON),PYTHONPATH=.venv/triton-$(TRITON)) $(BIN)/python -m bench.compile_report

.venv/triton-%: | $(BUILT)
	rm -rf $@.part
	$(BIN)/pip install -q --no-deps --target $@.part triton==$*
	mv $@.part $@

gpu:
	$(SEES_A_GPU)
	$(ON_A_GPU) -m bench.gpu $(if $(OUT),--out $(OUT))

gpu-cache: $(REHEARSAL)/built
	PYTHONPATH=$(CURDIR) $(REHEARSAL)/bin/python -m bench.gpu_cache

rehearse: $(REHEARSAL)/built
	PYTHONPATH=$(CURDIR) $(REHEARSAL)/bin/python -m tests.rehearsal

$(REHEARSAL)/built: constraints.txt
	@test -n '$(PYTHON_3_12)' || { echo 'no Python 3.12 here: PYTHON_3_12=... names one' >&2; exit 1; }
	@echo 'downloads $(REHEARSED) with the CUDA libraries that they need, about 3 GB, 6 GB on disk, into $(REHEARSAL)'
	$(PYTHON_3_12) -m venv $(REHEARSAL)
	sed -n '/^# tests/,/^$$/p' constraints.txt | $(REHEARSAL)/bin/pip install -q $(REHEARSED) 'numpy<2.4' setuptools -r /dev/stdin
	touch $@

bench:
	$(ON_A_GPU) -m bench $(BENCH)

# Without caching each tensor is an allocation of its own, whose end memcheck knows. The first run compiles the kernels.
sanitize:
	@command -v compute-sanitizer >/dev/null \
		|| { echo 'make sanitize: no compute-sanitizer in PATH; it comes with the CUDA toolkit, in bin/' >&2; exit 1; }
	$(SEES_A_GPU)
	@mkdir -p out
	env -u TRITON_INTERPRET PYTHONPATH=$(CURDIR) $(SANITIZED)
	@failed=0; for tool in memcheck racecheck initcheck; do \
		echo "== $$tool, into out/sanitize-$$tool.log"; \
		env -u TRITON_INTERPRET PYTHONPATH=$(CURDIR) PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
			compute-sanitizer --tool $$tool --error-exitcode 9 --log-file out/sanitize-$$tool.log $(SANITIZED) || failed=1; \
		tail -n 1 out/sanitize-$$tool.log; \
	done; exit $$failed

clean:
	rm -rf .venv .typing .benchmarks .*_cache build dist out *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BUILT): constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'trinn needs Python 3.10 or newer: PYTHON=... names one' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt setuptools wheel
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[demo,lint,test]'
	touch $@

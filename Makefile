# `make` says what there is. Everything is built in .venv, from the versions in constraints.txt; `make gpu` builds nothing.

PYTHON ?= python3
TRITON ?=
MINUTES ?= 10
OPS ?=
SEED ?= 0
BENCH ?= --quick

BIN := .venv/bin
CONVOLUTIONS := $(addprefix tests/test_,conv2d.py conv_transpose2d.py fused.py joining.py hard_inputs.py models.py moduleinfo.py)
BUILT := .venv/built
SANITIZED = $(PYTHON) -m pytest -q -p no:cacheprovider tests/test_bounds.py -k test_exact_allocations

.PHONY: help demo notes test test-long mutants fuzz precision lint types compile-report gpu bench sanitize clean

help:
	@echo 'make demo             LeNet learns handwritten digits on our kernels alone; draws what it learned'
	@echo 'make notes            a walk from a first network to AlexNet and its initialisation, printed'
	@echo 'make test             every operator against torch in float64, some minutes'
	@echo 'make test-long        all of torch'"'"'s own test inputs against our operators, and the tests of convolutions'
	@echo '                      by the kernels for Hopper, a quarter of an hour'
	@echo 'make mutants          breaks the kernels in dozens of ways, one by one, and sees that the tests notice'
	@echo 'make fuzz             draws cases and compares with torch: MINUTES=10 OPS=conv2d,linear SEED=0'
	@echo 'make precision        how exact every operator is, in units of torch'"'"'s own error'
	@echo 'make lint             ruff and mypy'
	@echo 'make compile-report   compiles every kernel for four GPUs without one: registers, spills, shared memory;'
	@echo '                      TRITON=3.6.0 make compile-report for another version of Triton'
	@echo 'make gpu              tests and demo on the GPU of this machine, with the torch and Triton of $$PYTHON as they are'
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --boxes $(CONVOLUTIONS)

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
	@$(PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null \
		|| { echo 'make gpu: $(PYTHON) sees no GPU: PYTHON=... names one whose torch does' >&2; exit 1; }
	env -u TRITON_INTERPRET PYTHONPATH=$(CURDIR) $(PYTHON) -m pytest -q \
		$$($(PYTHON) -c 'import xdist' 2>/dev/null && echo '-n 8 --dist worksteal')
	env -u TRITON_INTERPRET PYTHONPATH=$(CURDIR) $(PYTHON) examples/train_digits.py

bench:
	env -u TRITON_INTERPRET PYTHONPATH=$(CURDIR) $(PYTHON) -m bench $(BENCH)

# Without caching each tensor is an allocation of its own, whose end memcheck knows. The first run compiles the kernels.
sanitize:
	@command -v compute-sanitizer >/dev/null \
		|| { echo 'make sanitize: no compute-sanitizer in PATH; it comes with the CUDA toolkit, in bin/' >&2; exit 1; }
	@$(PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null \
		|| { echo 'make sanitize: $(PYTHON) sees no GPU: PYTHON=... names one whose torch does' >&2; exit 1; }
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

# `make` lists the commands. They install the versions in constraints.txt into .venv; `make gpu` installs nothing.

PYTHON ?= python3
TRITON ?=
ARCHITECTURES ?=
MINUTES ?= 10
OPS ?=
SEED ?= 0
BENCH ?= --quick
OUT ?=

BIN := .venv/bin
CONVOLUTIONS := $(wildcard $(foreach name,conv2d conv_transpose2d fused fuse hard_inputs models moduleinfo,tests/*/test_$(name).py))
BUILT := .venv/built
# Versions of the GPU machine of bench/results. `make rehearse` and `make gpu-cache` install them.
REHEARSED := torch==2.11.0 triton==3.6.0
PYTHON_3_12 ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null \
	|| ls $(HOME)/.pyenv/versions/3.12*/bin/python3.12 2>/dev/null | tail -n 1)
REHEARSAL := .venv/rehearsal
WITH_GPU := env -u TRITON_INTERPRET PYTHONPATH=$(CURDIR) $(PYTHON)
REQUIRE_GPU = @$(PYTHON) -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null \
	|| { echo 'make $@: torch of $(PYTHON) finds no GPU: set PYTHON=... to another Python' >&2; exit 1; }
SANITIZED = $(PYTHON) -m pytest -q -p no:cacheprovider tests/operators/test_bounds.py -k test_exact_allocations

.PHONY: help demo notes test test-long mutants fuzz precision lint types compile-report gpu gpu-cache rehearse bench sanitize clean

help:
	@echo 'make demo             train LeNet on handwritten digits with trinn'"'"'s kernels alone, and plot the result'
	@echo 'make notes            print a tour from a first network to AlexNet and its initialisation'
	@echo 'make test             test every operator against torch in float64, in some minutes'
	@echo 'make test-long        run all of torch'"'"'s own test inputs, the tests of convolutions on the kernels for Hopper, and the'
	@echo '                      same tests with float32 truncated to TF32, in 20 minutes'
	@echo 'make mutants          break the kernels in dozens of ways, one at a time, and check that a test fails'
	@echo 'make fuzz             compare random cases with torch: MINUTES=10 OPS=conv2d,linear SEED=0'
	@echo 'make precision        measure the error of every operator, in units of torch'"'"'s own error'
	@echo 'make lint             run ruff and mypy'
	@echo 'make compile-report   compile every kernel for four GPUs, without a GPU: registers, spills, shared memory;'
	@echo '                      TRITON=3.6.0 uses another version of Triton, ARCHITECTURES=sm_90 compiles for these GPUs only'
	@echo 'make gpu              test and time trinn on the GPU of this machine, in nine minutes, with the torch and Triton of'
	@echo '                      $$PYTHON; results go to bench/results/ or OUT=FOLDER'
	@echo 'make gpu-cache        compile the kernels of make gpu for an H200 in advance, without a GPU: gpu-cache.tar.xz'
	@echo 'make rehearse         run make gpu as far as possible without a GPU, with the versions of the H200 machine'
	@echo 'make bench            time operators and networks against torch on the GPU, with $$PYTHON, in less than 8 minutes;'
	@echo '                      BENCH= runs the full benchmark; BENCH also takes any arguments of python -m bench (see --help);'
	@echo '                      BENCH="conv --tune" checks, tunes and times convolutions, in less than 45 minutes'
	@echo 'make sanitize         run every operator under compute-sanitizer (memcheck, racecheck, initcheck) on a GPU, with $$PYTHON'
	@echo 'make clean            remove all generated files'
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

# mypy finds the package trinn through these links to its folders.
types:
	@mkdir -p .typing/trinn
	@ln -sfn $(addprefix ../../,kernels layers models trinn/__init__.py trinn/env.py trinn/py.typed) .typing/trinn

compile-report: $(BUILT) $(if $(TRITON),.venv/triton-$(TRITON))
	$(if $(TRITON),PYTHONPATH=.venv/triton-$(TRITON)) $(BIN)/python -m bench.compile.report \
		$(if $(ARCHITECTURES),--architectures $(ARCHITECTURES))

.venv/triton-%: | $(BUILT)
	rm -rf $@.part
	$(BIN)/pip install -q --no-deps --target $@.part triton==$*
	mv $@.part $@

gpu:
	$(REQUIRE_GPU)
	$(WITH_GPU) -m bench.gpu $(if $(OUT),--out $(OUT))

gpu-cache: $(REHEARSAL)/built
	PYTHONPATH=$(CURDIR) $(REHEARSAL)/bin/python -m bench.gpu_cache

rehearse: $(REHEARSAL)/built
	PYTHONPATH=$(CURDIR) $(REHEARSAL)/bin/python -m tests.rehearsal

$(REHEARSAL)/built: constraints.txt
	@test -n '$(PYTHON_3_12)' || { echo 'no Python 3.12 found: set PYTHON_3_12=...' >&2; exit 1; }
	@echo 'downloading $(REHEARSED) with their CUDA libraries into $(REHEARSAL): about 3 GB, 6 GB on disk'
	$(PYTHON_3_12) -m venv $(REHEARSAL)
	sed -n '/^# tests/,/^$$/p' constraints.txt | $(REHEARSAL)/bin/pip install -q $(REHEARSED) 'numpy<2.4' setuptools -r /dev/stdin
	touch $@

bench:
	$(WITH_GPU) -m bench $(BENCH)

# Without torch's caching allocator every tensor is its own allocation, so memcheck detects access past its end. The first run
# compiles the kernels.
sanitize:
	@command -v compute-sanitizer >/dev/null \
		|| { echo 'make sanitize: no compute-sanitizer in PATH; the CUDA toolkit has it in bin/' >&2; exit 1; }
	$(REQUIRE_GPU)
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
		|| { echo 'trinn needs Python 3.10 or newer: set PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt setuptools wheel
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[demo,lint,test]'
	touch $@

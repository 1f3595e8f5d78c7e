# Two commands a newcomer needs: `make quickstart` and `make test`. Everything else is for those who stay.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SIZES  := 0.1m 0.2m 0.4m
RUNS   := $(SIZES:%=runs/quickstart-%)
# a branch of the middle size whose learning rate does not decay
STEADY := quickstart-0.2m-constant
QUICK  := $(BIN)/emergence-train train configs/quickstart.yaml

# the same on real benchmarks, see configs/ladder.yaml
RUNGS  := 0.05m:1.2e-2 0.2m:6e-3 0.4m:3e-3 0.9m:2e-3 3m:1e-3

.PHONY: install quickstart ladder story grok test test-slow fault-trials soak lint docs cuda wheel bench-cpu gpu-python gpu-check gpu-sanitize gpu-bench gpu-first \
        gpu-wheels bench-redraw clean

install: $(VENV)/.installed $(VENV)/.compiled

# torch is installed first and pinned, so that nothing that depends on it can choose another build.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# After a change of its source too: a library of another is not used.
$(VENV)/.compiled: $(VENV)/.installed $(wildcard csrc/common/*.h csrc/cpu/*.* csrc/cpu/*/*.*)
	@$(BIN)/python -m emergence_kernels.backends.build cpu >/dev/null 2>&1 || echo "csrc/cpu was not compiled (no g++?): PyTorch's own operations"
	@touch $@

quickstart: install
	$(BIN)/emergence-train prepare configs/quickstart.yaml
	for size in $(SIZES); do $(QUICK) name=quickstart-$$size model.preset=shallow-$$size || exit 1; done
	$(QUICK) name=$(STEADY) training.schedule.kind=constant training.schedule.decay_tokens=0 --from runs/quickstart-0.2m@640
	$(BIN)/emergence-train analyze temporal $(RUNS) --fit-fraction 0.4 --split iid --out runs/quickstart-report/temporal
	$(BIN)/emergence-train analyze emergence $(RUNS) --out runs/quickstart-report/emergence
	$(BIN)/emergence-train report $(RUNS) runs/$(STEADY) --out runs/quickstart-report

# An hour and a half on one shared core; the same command resumes.
ladder: install
	test -f data/ladder/sources.json || $(BIN)/python benchmarks/studies/ladder_text.py
	$(BIN)/emergence-train prepare configs/ladder.yaml
	for size in $(RUNGS); do \
	  $(BIN)/emergence-train train configs/ladder.yaml name=ladder-$${size%:*} \
	    model.preset=tiny-$${size%:*} training.schedule.lr=$${size#*:} || exit 1; \
	done
	$(BIN)/python benchmarks/studies/emergence_runs.py --name ladder --sources data/ladder/sources.json \
	  $(foreach size,$(RUNGS),runs/ladder-$(firstword $(subst :, ,$(size))))

# A few hours on two cores; the same command resumes. What the sources claim, tried on 42 runs: benchmarks/results/story/.
story: install
	test -f data/ladder/sources.json || $(BIN)/python benchmarks/studies/ladder_text.py
	$(BIN)/emergence-train ladder configs/ladders/story.yaml
	$(BIN)/python benchmarks/studies/story_laws.py --runs runs/story
	$(BIN)/python benchmarks/studies/story.py --runs runs/story
	$(BIN)/emergence-train report runs/story --out runs/story/report

# 60 models of up to 4,700 parameters learn addition modulo 23: by heart, and later, where there are data enough, as such.
grok: install
	$(BIN)/emergence-train grok configs/grok/tiny.yaml --out runs/grok-tiny

# Bytecode is kept, whatever the environment says: hundreds of processes import the same modules.
test test-slow: export PYTHONDONTWRITEBYTECODE :=
# Lint is among them (tests/test_lint.py). Three workers on two cores: some tests wait, for processes that they start or stop.
test: install
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not slow and not gpu" tests

# Hours. Killed, it resumes where it was: what has passed at this commit, or since the commit SINCE, is left out.
test-slow: install
	EMERGENCE_TEST_PATIENCE=6 $(BIN)/python -m pytest -q -n 2 --dist loadfile --timeout 3600 -m "slow and not gpu" \
	  $(if $(SINCE),--results-since $(SINCE)) --results benchmarks/results/tests-slow.json tests

# Runs that are killed, stopped, starved, damaged and cut off; half an hour on 2 quiet cores for 220 trials.
TRIALS ?= 220
fault-trials: install
	$(BIN)/python tests/faults/trials.py --count $(TRIALS) --out benchmarks/results/cpu/faults.json
	$(BIN)/python tests/faults/crash_states.py --out benchmarks/results/cpu/crash-states.json
	$(BIN)/python tests/faults/disk_errors.py --every 3 --out benchmarks/results/cpu/disk-errors.json
	FAULTS_ALL=1 FUZZ_EXAMPLES=3000 $(BIN)/python -m pytest -q tests/faults/test_scenarios.py tests/faults/test_fuzz.py \
	  tests/checkpoint/

# Two hours of training whose memory, open files and threads must stay flat.
soak: install
	$(BIN)/python tests/faults/soak.py --seconds 7200 --out benchmarks/results/cpu/soak.json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --diff .
	$(BIN)/mypy

# The documentation as a site, to be opened from disk: build/site/index.html.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The CUDA kernels of csrc/, beside the package (needs nvcc; EMERGENCE_CUDA_ARCHITECTURES=80,90a,100a by default).
cuda: install
	$(BIN)/python -m emergence_kernels.backends.build cuda

# With the CUDA kernels compiled in: for any Python 3 and any torch from 2.10 on.
wheel: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77'
	EMERGENCE_CUDA=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

bench-cpu: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/speed/cpu_training.py

# On a machine with a GPU, with whatever torch and Triton its $(PYTHON) has (see benchmarks/README.md for offline ones).
# The CUDA kernels are compiled first where there is an nvcc.
PATHS  := PYTHONPATH=$(CURDIR):$(CURDIR)/kernels:$(PYTHONPATH)
ON_GPU := $(PATHS) $(PYTHON)
BUILD_CUDA = $(ON_GPU) -m emergence_kernels.backends.build cuda || echo "the CUDA kernels are left out"
gpu-check gpu-sanitize gpu-bench gpu-first: gpu-python
gpu-python:
	@$(PYTHON) -c 'import torch; raise SystemExit(0 if torch.cuda.is_available() else 3)' 2>/dev/null; case $$? in \
	  0) ;; \
	  3) echo "PyTorch sees no CUDA device here, and this needs one" >&2; exit 2;; \
	  *) echo "$(PYTHON) cannot import torch: name one that can, as in make gpu-check PYTHON=.venv/bin/python" >&2; exit 2;; \
	esac

gpu-check:
	@$(BUILD_CUDA)
	@$(ON_GPU) -m emergence_kernels.backends.build checks || echo "products by themselves are not tested"
	$(ON_GPU) benchmarks/gpu_check.py

# Accesses out of bounds, races and uninitialised memory in the CUDA kernels, at small shapes.
SANITIZERS ?= memcheck racecheck initcheck
gpu-sanitize:
	@$(BUILD_CUDA)
	for tool in $(SANITIZERS); do \
	  $(PATHS) compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PYTHON) -m pytest -q -p no:cacheprovider tests/kernels/backends/test_kernel_compiled.py \
	    tests/kernels/attention/test_kernel_compiled_attention.py tests/kernels/attention/test_kernel_hopper.py \
	    tests/kernels/feed_forward tests/kernels/cross_entropy/test_kernel_loss_rows_hopper.py \
	    -k "(cuda or hopper or blocks or tiles or strides or feed_forward or linear_rotary) and not layer and not again and not races \
	      and not 50304 and not 57344 and not 32000 and not 1024" || exit 1; \
	done

bench-redraw: install
	$(BIN)/python benchmarks/redraw.py --ranking benchmarks/results

gpu-bench:
	@$(BUILD_CUDA)
	$(ON_GPU) benchmarks/kernels.py --suite short --budget 1800 || [ $$? -eq 75 ]  # 75: the budget left shapes out
	$(ON_GPU) benchmarks/gpu_training.py

# All of it in stages, for half an hour of a GPU; what was not reached is left for the next call.
MINUTES ?= 30
gpu-first:
	@$(BUILD_CUDA)
	$(ON_GPU) benchmarks/gpu_first.py --minutes $(MINUTES)

# Wheels for a GPU machine without network that has torch, Triton and Python 3.12 (unpack: benchmarks/README.md). quack and
# flash-attn 4 compile by a library of 92 MB: it comes in two pieces, for where what can be carried at a time is bounded.
PLATFORMS := $(foreach v,2_28 2_27 2_24 2_17 2014 1,--platform $(if $(filter 2014 1,$(v)),manylinux$(v),manylinux_$(v))_x86_64)
FOR_312 := --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $(PLATFORMS)
gpu-wheels: install
	$(BIN)/python -m pip wheel -q --no-deps --wheel-dir wheels --constraint constraints.txt deepspeed
	$(BIN)/python -m pip download -q $(FOR_312) --dest wheels --constraint constraints.txt \
	  hjson pydantic pydantic_core annotated-types typing-inspection
	for peer in liger-kernel quack-kernels cut-cross-entropy flash-attn-4 apache-tvm-ffi torch-c-dlpack-ext \
	    nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-core nvidia-cutlass-dsl-libs-base; do \
	  $(BIN)/python -m pip download -q $(FOR_312) --pre --dest wheels $$peer || echo "$$peer: no wheel, left out"; \
	done
	$(BIN)/python -m pip download -q $(FOR_312) --dest wheels-large nvidia-cutlass-dsl-libs-cu13 && cd wheels-large && \
	  for wheel in *.whl; do split --number 2 --numeric-suffixes=1 --suffix-length 1 $$wheel $$wheel. && rm $$wheel; done && \
	  for piece in 1 2; do mkdir -p ../wheels-$$piece && mv *.$$piece ../wheels-$$piece/; done && rmdir ../wheels-large
	ls -l wheels wheels-1 wheels-2

clean:
	rm -rf $(VENV) build dist *.egg-info

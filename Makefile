# The two commands of the README are `make demo` and `make test`; each builds .venv if it is not there.
VENV ?= .venv
PY := $(VENV)/bin/python
# make setup TORCH_BACKEND=cpu: PyTorch without CUDA; see docs/installation.md
TORCH_BACKEND ?=
STAMP := $(VENV)/.u2seg-ready
EXPORT_STAMP := $(VENV)/.u2seg-export-ready

.PHONY: setup setup-dev demo demo-supervised test test-pythons gpu-check lint docs lock clean

setup: $(STAMP)

$(STAMP): requirements.lock setup.py pyproject.toml tools/setup_env.sh
	TORCH_BACKEND=$(TORCH_BACKEND) tools/setup_env.sh $(VENV)
	touch $@

# ONNX and its runtime, for the tests of `u2seg export`: 100 MB that nothing else needs. As in setup_env.sh,
# pip does where there is no uv.
$(EXPORT_STAMP): $(STAMP) requirements-export.lock
	$(PY) -m uv pip install --quiet --python $(PY) -r requirements-export.lock || \
		$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-export.lock
	touch $@

# pydensecrf2, which the CRF's tests and benchmark compare with; it is compiled by gcc, in about 80 seconds.
setup-dev: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check pydensecrf2

demo: $(STAMP)
	$(VENV)/bin/u2seg demo --output output/demo

demo-supervised: $(STAMP)
	$(VENV)/bin/u2seg demo --output output/demo --supervised

# One thread each: a process that starts more threads than there are cores is several times slower. A file stays in one process,
# because its tests share what is slow to make. -rs: why tests were skipped, once, at the end.
WORKERS ?= 2
test: $(EXPORT_STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -rs -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Every Python from 3.10 to 3.13 that is installed, each in an environment of its own below output/pythons.
test-pythons:
	tools/test_pythons.sh output/pythons

# On a machine with a GPU; in 25 minutes, without a network. PY may name another Python that has everything installed.
gpu-check:
	$(PY) tools/gpu_check.py --output output/gpu_check

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(STAMP)
	$(PY) -m sphinx -W --keep-going -q -b html docs output/docs
	@echo "documentation in output/docs/index.html"

lock:
	uv pip compile --universal --python-version 3.10 --no-annotate --no-header requirements.in -o requirements.lock
	uv pip compile --universal --python-version 3.10 --no-annotate --no-header -c requirements.lock requirements-export.in -o requirements-export.lock

clean:
	rm -rf output build .pytest_cache .ruff_cache .mypy_cache

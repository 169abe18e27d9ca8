# make demo: install, prepare the embedded data, train, print the results.   make test: every test, notebooks included.   make bench: benchmarks/results.md.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin

.PHONY: demo test bench data lab clean
.DELETE_ON_ERROR:

demo: data
	$(BIN)/papermill notebooks/04_train.ipynb runs/04_train.ipynb
	@$(BIN)/python -c "import json; from clipdec.evaluation import result_table; print(result_table(json.load(open('runs/emoji/metrics.json'))))"

test: $(VENV)/.installed-test data
	$(BIN)/python -m pytest --nbval

bench: $(VENV)/.installed-test data
	$(BIN)/python -m benchmarks

data: $(VENV)/.installed
	$(BIN)/python -m data_prep.emoji_scenes --out data/emoji
	@mkdir -p runs

lab: $(VENV)/.installed
	$(BIN)/jupyter lab notebooks

# A stamp is written last: without it an environment is half-made, and is made anew.
$(VENV)/.installed: pyproject.toml
	test -f $@ || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable .[test]
	touch $@

clean:
	rm -rf $(VENV) data/emoji runs

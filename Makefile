# make reports [DATASET=demo] [ONLY='table1 table2']   every table and figure, or some, into reports/DATASET, from nothing
#                               a notebook that would write the same does not run again; with AGAIN=1 it does
# make test                     all tests; make test-full their long form, and those that take minutes; writes reports/demo/robustness.*
# make notebooks                JupyterLab, with nbs/index.ipynb open
# make outputs                  after a change: runs the library's notebooks and stores what they show
# make docs                     a static site of notebooks, API and results, in docs/_build/html
# make bench                    the speed report: make reports ONLY=speed, on a quiet machine
# make install                  .venv alone, with the hcms command
# Each makes .venv first, with what requirements.lock pins.
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
DATASET ?= demo
ONLY    ?=
AGAIN   ?=
BIN     := .venv/bin

unexport PYTHONDONTWRITEBYTECODE   # pip compiles nothing; what is imported is compiled once, and only that

.PHONY: bench docs reports test test-full notebooks outputs install export clean
reports: .venv/ready
	$(BIN)/hcms report $(DATASET) $(ONLY:%=--only %) $(AGAIN:%=--again)

bench: .venv/ready
	$(BIN)/hcms report demo --only speed

test test-full: export OMP_NUM_THREADS = 1   # two test processes share the cores; a thread that waits for one spins
test: .venv/ready
	$(BIN)/python -m pytest

test-full: .venv/ready
	$(BIN)/python -m pytest -m ''

install: .venv/ready

notebooks: .venv/ready
	env -u JUPYTER_PATH $(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) nbs/index.ipynb   # a python3 from elsewhere is not this one

docs: .venv/ready
	$(BIN)/python docs/build.py

outputs: export OMP_NUM_THREADS = 1
outputs: .venv/ready
	$(BIN)/python nbs/outputs.py

export: .venv/ready            # after editing notebooks: clean them, rewrite hcms/ and README.md
	cd nbs && ../$(BIN)/nbdev_clean && ../$(BIN)/nbdev_export && ../$(BIN)/python make_readme.py

.venv/ready: requirements.lock settings.ini setup.py jupyter_server_config.py jupyterlab_overrides.json
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	mkdir -p .venv/etc/jupyter .venv/share/jupyter/lab/settings
	cp jupyter_server_config.py .venv/etc/jupyter/
	cp jupyterlab_overrides.json .venv/share/jupyter/lab/settings/overrides.json   # 110 characters fit
	touch $@

clean:                         # what was made; the corpus and the trained models too
	rm -rf data checkpoints

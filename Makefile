# Everything a fresh machine needs: `make demo` runs the chat, `make test` passes the tests. Both set up what they need.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements/cpu.txt
SMALL  := smollm2-135m-instruct
MODEL  ?= qwen2.5-coder-0.5b-instruct
DATA   ?= ../shared/data
MINUTES ?= 25

.PHONY: help setup demo test lint audit bench picture evidence clean browser postgres fuzz proxy load soak

help:             ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.ready  ## make the environment; a second run takes seconds

# The marks are written last, so an interrupted step is done again. --no-deps: see docs/architecture.md (torchvision).
$(VENV)/.locked: $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r $(LOCK)
	touch $@

$(VENV)/.ready: $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: setup       ## open the chat on http://127.0.0.1:7860
	$(BIN)/sensecheck model fetch $(MODEL)
	$(BIN)/sensecheck chat --model $(MODEL)

browser:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null; }

proxy:
	@command -v haproxy >/dev/null || test -x /usr/sbin/haproxy || { apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy >/dev/null; }

# In two parts: without vLLM servers on all cores, one thread each; then those with a server, which has the machine to itself.
test: setup browser postgres proxy  ## run all tests: unit, real model, real server, real browser, real PostgreSQL, real proxy
	$(BIN)/sensecheck model fetch $(SMALL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not server" --numprocesses auto --dist loadfile; shared=$$?; \
	$(BIN)/python -m pytest -m server && exit $$shared

lint: setup       ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# pip-audit has an environment of its own: it looks at the lock and belongs to nothing in it.
$(VENV)-audit/.ready:
	test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit || python3 -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit==2.10.1
	touch $@

audit: $(VENV)-audit/.ready  ## check the lock for known vulnerabilities; says so when no service can be reached
	$(VENV)-audit/bin/python requirements/audit.py

$(VENV)/.fuzzing: $(VENV)/.locked requirements/fuzz.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/fuzz.txt
	touch $@

fuzz: setup $(VENV)/.fuzzing  ## a night's fuzzing, at most MINUTES: 100,000 random cases and more that coverage guides
	$(BIN)/sensecheck model fetch $(SMALL)
	$(BIN)/python -m tests.fuzz.run --minutes $(MINUTES)

bench: setup      ## measure; prints ratios against a named baseline
	$(BIN)/python -m benchmarks.reading --model $(SMALL)
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.overhead --model $(SMALL)

load: setup       ## up to 128 users at once beside plain vLLM, about 25 minutes; goes on where it was interrupted
	$(BIN)/sensecheck model fetch $(SMALL)
	$(BIN)/python -m benchmarks.load --model $(SMALL) --svg results/load.svg

soak: setup       ## half an hour of steady traffic; fails when the server holds more and more
	$(BIN)/sensecheck model fetch $(SMALL)
	$(BIN)/python -m benchmarks.soak --model $(SMALL) --svg results/soak.svg

picture: setup browser  ## make the README's picture anew
	$(BIN)/python -m docs.take_picture

evidence: setup   ## a quick version of docs/evidence.md (about 12 minutes); DATA is the folder of the data sets
	$(BIN)/sensecheck eval planted --set examples --out results/quick
	$(BIN)/sensecheck eval run mohx --data $(DATA) --out results/quick --limit 80 --fit 500 --arms flagged,always,placebo,oracle
	$(BIN)/sensecheck eval report results/quick

clean:            ## remove the environment and caches of tools (models stay in the user's cache)
	rm -rf $(VENV) $(VENV)-audit build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Each target works from a fresh clone: .venv is built where it is missing, and brought up to date where
# pyproject.toml or constraints.txt changed since.

# The first interpreter that is new enough; `make PYTHON=/path/to/python` overrides.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
READY := .venv/.ready
RUN ?= runs/latest

.PHONY: search test lint report venv clean
.DELETE_ON_ERROR:

search: $(READY)
	$(BIN)/autocomp search --hw mobile_arm --budget 4MB

# A file's tests stay in one process, so that what they share is made once.
test: $(READY)
	$(BIN)/python -m pytest -n logical --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

report: $(READY)
	$(BIN)/autocomp report $(RUN)

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Building .venv: PyTorch, Ray and ONNX Runtime, several GB on disk. Minutes the first time, seconds later."
	@start=$$(date +%s); \
	test -x $(BIN)/python || $(PYTHON) -m venv .venv && \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,imagenet,npu]' && \
	touch $@ && echo "Built .venv in $$(( $$(date +%s) - start )) s."

clean:
	rm -rf .venv build dist

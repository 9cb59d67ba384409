# Every target sets up what it needs itself (scripts/setup); on a Debian machine as root nothing has to be done before.
# All but clean can run at the same time in one checkout.
# ROOTFS=file.tar    demo: the root filesystem to import, instead of a Debian made by debootstrap
# PYTHON=python3.12  the interpreter of .venv
# JOBS=2             test, test-long: how many tests run at the same time
# ARGS=...           test, test-long, test-vm, fuzz, bench: further arguments

PY := .venv/bin/python
export ROOTFS PYTHON JOBS

.PHONY: help demo test test-long test-vm lane-counts lint fuzz bench docs clean

help:
	@sed -n 's/^## //p' Makefile

## make demo         a real root filesystem gets a writable layer with a hard limit, hits it and grows past it
demo:
	@scripts/setup demo
	@$(PY) -m layerlimit.demo

## make test         the tests and the linters
test:
	@scripts/setup test
	@scripts/run-tests $(ARGS)

## make test-long    the same with the tests that take hours rather than minutes
test-long:
	@scripts/setup test
	@scripts/older-engines
	@scripts/run-tests --long $(ARGS)

## make test-vm      the tests on Debian's own kernel, in a machine of their own
test-vm:
	@scripts/setup test
	@scripts/run-tests --guest=all tests/vm $(ARGS)

## make lane-counts  record how many tests each lane has (tests/lane-counts.toml)
lane-counts:
	@scripts/setup test
	@$(PY) -m pytest --collect-only -q -q --record-lane-counts

## make lint         only the linters
lint:
	@scripts/setup test
	@$(PY) -m pytest -q tests/test_linters.py

## make fuzz         feed the tar reader and the extraction with damaged archives (ARGS="--seconds 600 --apply")
fuzz:
	@scripts/setup test
	@$(PY) -m tests.fuzz.fuzz_reader $(or $(ARGS),--seconds 60)

## make bench        the times that README.md claims, on this machine
bench:
	@scripts/setup test
	@$(PY) -m bench $(ARGS)

## make docs         the documentation as HTML in docs/_build
docs:
	@scripts/setup docs
	@$(PY) -m sphinx -q -W --keep-going docs docs/_build/html

## make clean        remove what the other targets made in this checkout, and what aborted test runs left on the machine
clean:
	@if [ -x $(PY) ]; then $(PY) -m tests.scratch; fi
	@rm -rf build dist .cache .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache docs/_build

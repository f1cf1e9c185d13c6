# Targets for people: install, install-train, demo, viewer, test, test-all, fuzz, faults, soak, bench,
# benchmark-encoding, sbom, audit, site, lint. Everything happens in .venv; see README.md.

PYTHON ?= python3
VENV := .venv
TOOLS := .venv-tools
BIN := $(VENV)/bin
CT ?=
OUT ?= demo-out
FILES ?= 20000
SEED ?= 1
MINUTES ?= 30
BENCH_OUT ?= bench-out
PARTS ?=
REPEATS ?= 3
VIEWER ?=
SBOM ?= sbom.json
ADVISORIES ?=
DICOM ?=
# As many tests at once as there are processors (four at most); a file of tests stays together, for what it sets up once.
IN_PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
DEBIAN_VIEWER_PACKAGES := orthanc orthanc-dicomweb orthanc-gdcm gcc libc6-dev chromium fonts-dejavu-core
DEBIAN_TEST_PACKAGES := dcmtk dicom3tools postgresql prometheus $(DEBIAN_VIEWER_PACKAGES)

.PHONY: install install-train install-dev debian-packages viewer-tools demo viewer test test-all fuzz faults soak bench \
  benchmark-encoding sbom audit site lint format clean

install: $(VENV)/.installed

# torch goes first and by its exact version: whatever depends on it then takes the build that is there.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[web]' -c constraints.txt
	touch $@

# What `pulmo-train` needs besides: Lightning, HDF5, plots, the database of LIDC's readers.
install-train: $(VENV)/.installed-train

$(VENV)/.installed-train: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train]' -c constraints.txt
	touch $@

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

# What the tests use besides Python. Tests that need a program that is not installed skip and say so.
# Node.js by its program: where it does not come from Debian, npm is in it, and Debian's npm would not go with it.
debian-packages:
	@missing=""; for p in $(DEBIAN_TEST_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	command -v npm >/dev/null || missing="$$missing nodejs npm"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "not installed, tests that need them will skip:$$missing"; fi

# OHIF and the driver of the browser, by npm, into a cache folder outside the repository.
viewer-tools: install
	@$(BIN)/python -m tests.viewer.tools >/dev/null || echo "the viewer tests will skip"

demo: install $(if $(VIEWER),debian-packages)
	$(if $(VIEWER),ohif=$$($(BIN)/python -m tests.viewer.tools) &&) \
	  $(BIN)/pulmo-node demo --out "$(OUT)" $(if $(CT),--ct "$(CT)") $(if $(VIEWER),--viewer "$$ohif")

# OHIF over phantoms with known results, or over a folder with CT, SR and SEG: make viewer DICOM=DIR
viewer: install debian-packages
	$(BIN)/python -m tests.viewer $(if $(DICOM),--dicom "$(DICOM)")

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install-dev debian-packages viewer-tools lint
	OMP_NUM_THREADS=1 $(BIN)/pytest $(IN_PARALLEL) -m "not slow and not gpu and not soak"

test-all: install-dev debian-packages viewer-tools lint
	$(BIN)/pytest

# 20,000 spoiled series through receive and assemble; a quarter of an hour on two free processors.
fuzz: install-dev
	$(BIN)/python -m tests.fuzz --files $(FILES) --seed $(SEED)

# What must not happen, made to happen: kill -9, full disk, PACS in trouble, load, hostile network. Half an hour on two
# processors; prints the table of docs/reliability.md. The full disk is a tmpfs, which only root may mount.
faults: install-dev debian-packages
	$(BIN)/python -m tests.faults --seed $(SEED)

# Half an hour of one study after the other; nothing that the node holds may grow.
soak: install-dev
	$(BIN)/python -m tests.faults --only soak --seed $(SEED) --minutes $(MINUTES)

# Every table of BENCHMARKS.md: medians and ratios, each alternative in the same run on the same data. An hour or two on
# two processors that have nothing else to do; make bench PARTS="latency memory" measures these alone.
bench: install-dev debian-packages
	$(BIN)/python -m benchmarks $(PARTS) --out "$(BENCH_OUT)" --repeats $(REPEATS)

# Time and size of the result objects of ten nodules in a series of 300 slices.
benchmark-encoding: install-dev
	$(BIN)/python -m benchmarks.encoding

# The documents as a site, in site/; tables that come from the code are written anew.
site: install-dev
	$(BIN)/python -m tools.conformance
	$(BIN)/python -m tools.licences
	$(BIN)/python deploy/grafana/make_dashboard.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# What is installed, as CycloneDX (JSON), by a tool in a folder of its own so that it does not list itself.
sbom: install $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o "$(SBOM)" $(BIN)/python
	@echo "$(SBOM)"

# Known vulnerabilities of what is installed, asked of PyPI; without a network, with ADVISORIES=FOLDER-OR-ZIP, of a list in
# the OSV format. Fails where one is known, and where a package could not be looked up.
audit: install $(if $(ADVISORIES),,$(TOOLS)/.installed)
ifneq ($(ADVISORIES),)
	$(BIN)/python -m tools.advisories "$(ADVISORIES)"
else
	$(BIN)/pip list --format=freeze --exclude-editable --disable-pip-version-check | sed 's/+.*//' > $(TOOLS)/installed.txt
	$(TOOLS)/bin/pip-audit --requirement $(TOOLS)/installed.txt --no-deps --disable-pip --strict
endif

$(TOOLS)/.installed: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $@

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(TOOLS) sbom.json build dist *.egg-info demo-out viewer-out site

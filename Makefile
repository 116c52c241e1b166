# Everything that a person or CI runs; "make help" lists it. The work is done by scripts.

GROUND := ./setup_kernel.sh
# In the root filesystem (see setup_kernel.sh) the plugin is built beside that root.
PLUGINS ?= $(or $(CRIU_DETACHED_PLUGINS),plugins)
PREFIX ?= /usr/local
DESTDIR ?=
LIBDIR ?= /usr/lib/criu
# runc or crun: have it load plugins from LIBDIR, if that is not the default.
RUNTIME ?=
PYTHON ?= python3
# A pytest expression that selects tests: make test-native K='fifo and not exe'
K ?=
export K
MACHINES = machines-forky-trixie-forky machines-trixie-forky

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: plugin
plugin: ## build the plugin into plugins/ (PLUGINS=DIR: elsewhere)
	$(PYTHON) plugin/build.py --output "$(PLUGINS)"

INSTALL = --destdir "$(DESTDIR)" --prefix "$(PREFIX)" --libdir "$(LIBDIR)"

.PHONY: install
install: ## install the plugin for CRIU (LIBDIR, RUNTIME=runc|crun; DESTDIR, PREFIX)
	$(PYTHON) plugin/install.py $(INSTALL) $(RUNTIME:%=--runtime=%)

.PHONY: uninstall
uninstall: ## undo that
	$(PYTHON) plugin/install.py $(INSTALL) --uninstall

.PHONY: demo
demo: ## show a process with files on a detached mount dumped and restored
	@$(GROUND) auto sh -c 'make --silent plugin && exec python3 demo/demo.py'

.PHONY: bench
bench: ## measure what the plugin costs, natively
	@$(GROUND) native sh -c 'make --silent plugin && for part in bench containers crowd; do \
		python3 bench/$$part.py || failed=1; done; exit $${failed:-0}'

.PHONY: test
test: ## every mechanism on both kernels: unit tests, a core set natively and in the VM
	@CRIU_DETACHED_NO_SKIP=1 .ci/run unit core core-vm

.PHONY: test-all
test-all: ## all of CI: every test natively and in the VM, other CRIUs and kernels, lint
	@.ci/run

.PHONY: test-unit
test-unit: ## unit tests alone (K=EXPRESSION selects)
	@.ci/run unit

.PHONY: test-native
test-native: ## integration tests on this machine's kernel alone (K=EXPRESSION selects)
	@.ci/run native

.PHONY: test-vm
test-vm: ## integration tests in the VM alone (K=EXPRESSION selects)
	@.ci/run vm

.PHONY: test-matrix
test-matrix: ## every CRIU through all integration tests natively; other kernels on a core set
	@CRIU_DETACHED_NO_SKIP=1 .ci/run unit native criu-trixie criu-experimental \
		criu-vm-trixie criu-vm-experimental kernel-trixie kernel-bookworm engines-trixie \
		$(MACHINES)

.PHONY: test-machines
test-machines: ## from one VM to another one and back: a newer kernel, and an older one
	@CRIU_DETACHED_NO_SKIP=1 .ci/run $(MACHINES)

.PHONY: coverage
coverage: ## rewrite the README's coverage table from the results of "make test-all"
	@$(PYTHON) tests/coverage_table.py --write

.PHONY: lint
lint: ## check style, types and compiler warnings
	@.ci/run lint

.PHONY: format
format: ## apply the formatters
	@.ci/run format

.PHONY: clean
clean: ## remove what was built, but keep the test ground
	rm -rf plugins build *.egg-info .cache/*/plugins .cache/results .cache/hypothesis .cache/lint .cache/machines-*
	find . -path ./.cache -prune -o -name __pycache__ -type d -print | xargs -r rm -rf

.PHONY: distclean
distclean: clean ## remove the test ground too
	@[ ! -e .cache/installed ] || echo "To remove what was installed for it:" \
		"apt-get autoremove --purge $$(sort -u .cache/installed | tr '\n' ' ')"
	rm -rf .cache

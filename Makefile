# `make help` says what there is. Building needs cargo and a C compiler; the tests fetch what else they need.

PREFIX     ?= /usr/local
LIBDIR     ?= lib
INCLUDEDIR ?= include
DESTDIR    ?=
CARGO      ?= cargo

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
MAJOR   := $(firstword $(subst ., ,$(VERSION)))
TARGET  ?= $(or $(CARGO_TARGET_DIR),target)
BUILT   ?= $(TARGET)/release
ARCH    := $(shell uname -m)

# The oldest glibc that a release runs on: RHEL 8, Ubuntu 20.04 and everything newer.
GLIBC   := 2.28

.DEFAULT_GOAL := build
.PHONY: help build demo perf bench transfer-bench host-bench check test gpu-pack gpu-test gpu-bench test-release test-torch release install uninstall clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## libtutti.so and libtutti.a in target/release
	@$(CARGO) build --release --locked --lib --bins
	@ln -sf libtutti.so $(BUILT)/libtutti.so.$(MAJOR)

demo: build ## build everything and run an all-reduce between 4 processes (ARGS=--help)
	@mkdir -p $(TARGET)/demo
	@$(CC) -std=c11 -O2 -Wall -Wextra -Iinclude examples-c/demo.c -o $(TARGET)/demo/demo \
	    -L$(BUILT) -ltutti -Wl,-rpath,$(abspath $(BUILT))
	@$(TARGET)/demo/demo $(ARGS)

perf: build ## build tutti-perf and measure the collectives here (ARGS=--help)
	@mkdir -p $(TARGET)/perf
	@$(CC) -std=c11 -O3 -Wall -Wextra -Iinclude examples-c/tutti-perf.c examples-c/perf/*.c -o $(TARGET)/perf/tutti-perf \
	    -L$(BUILT) -ltutti -lm -Wl,-rpath,$(abspath $(BUILT))
	@$(TARGET)/perf/tutti-perf $(ARGS)

bench: build ## measure beside Open MPI, MPICH, Intel MPI and oneCCL, which it installs below .tools (BENCH=--help)
	@tests/package/tools build package
	@BUILT=$(BUILT) python3 benches/bench.py $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH)

transfer-bench: ## plan a model of 10^12 parameters; move tensors beside plain messages and gather-then-broadcast
	@$(CARGO) bench --locked --bench transfer_plan
	@$(CARGO) bench --locked --bench transfer

host-bench: ## what the host does for a call of a CUDA group, on a stub of the driver: no card needed
	@$(CARGO) bench --locked --bench cuda_host

check: ## format, lints and unit tests: what to run before every commit
	@tests/run check

test: ## every test that needs no GPU, the installed package included
	@tests/run all

test-release: ## build a release and check that it needs no newer glibc than 2.28
	@tests/run release

gpu-pack: ## build all that gpu-test and gpu-bench run into build/card.tar.xz, for a machine with a card and nothing else
	@tests/cuda/pack

gpu-test: ## what needs a card: results, graphs, failures; says so where there is none; PARTS= for some of it
	@tests/cuda/card $(PARTS)

gpu-bench: ## times on a card, in graph replay, beside what the hardware allows; says so where there is none
	@tests/cuda/bench

test-torch: ## torchrun with torch (CPU) from a venv of its own; not part of `make test`
	@tests/run torch

release: ## dist/tutti-VERSION-ARCH-linux-gnu.tar.gz, for glibc 2.28 and newer
	@tests/package/tools zigbuild
	@PATH="$(CURDIR)/.tools/venv/bin:$$PATH" $(CARGO) zigbuild --release --locked --lib --bins --target $(ARCH)-unknown-linux-gnu.$(GLIBC)
	@rm -rf dist/tutti-$(VERSION)-$(ARCH)-linux-gnu
	@$(MAKE) --no-print-directory install PREFIX=$(CURDIR)/dist/tutti-$(VERSION)-$(ARCH)-linux-gnu DESTDIR= \
	    BUILT=$(TARGET)/$(ARCH)-unknown-linux-gnu/release
	@tar -C dist -czf dist/tutti-$(VERSION)-$(ARCH)-linux-gnu.tar.gz tutti-$(VERSION)-$(ARCH)-linux-gnu
	@echo "dist/tutti-$(VERSION)-$(ARCH)-linux-gnu.tar.gz"

# The same tree as `cmake --install`: libraries, headers, CMake package, tutti.pc, tutti.py. Nothing in it knows PREFIX.
ROOT    = $(DESTDIR)$(PREFIX)
PACKAGE = $(ROOT)/$(LIBDIR)/cmake/tutti
way     = $(shell realpath -m --relative-to=/prefix/$(1) /prefix/$(2))
fill    = sed -e 's|@TUTTI_VERSION@|$(VERSION)|' -e 's|@TUTTI_LIBDIR@|$(LIBDIR)|' -e 's|@TUTTI_INCLUDEDIR@|$(INCLUDEDIR)|' \
    -e 's|@TUTTI_PACKAGE_TO_LIB@|$(call way,$(LIBDIR)/cmake/tutti,$(LIBDIR))|' \
    -e 's|@TUTTI_PACKAGE_TO_INCLUDE@|$(call way,$(LIBDIR)/cmake/tutti,$(INCLUDEDIR))|' \
    -e 's|@TUTTI_PC_TO_PREFIX@|$(call way,$(LIBDIR)/pkgconfig,.)|'

install: $(if $(filter $(TARGET)/release,$(BUILT)),build) ## install below PREFIX (default /usr/local); needs no CMake
	@install -d $(ROOT)/bin $(ROOT)/$(LIBDIR)/pkgconfig $(PACKAGE) $(ROOT)/$(INCLUDEDIR) $(ROOT)/share/tutti/python $(ROOT)/share/doc/tutti
	@install -m 755 $(BUILT)/libtutti.so $(ROOT)/$(LIBDIR)/libtutti.so.$(VERSION)
	@ln -sf libtutti.so.$(VERSION) $(ROOT)/$(LIBDIR)/libtutti.so.$(MAJOR)
	@ln -sf libtutti.so.$(MAJOR) $(ROOT)/$(LIBDIR)/libtutti.so
	@install -m 644 $(BUILT)/libtutti.a $(ROOT)/$(LIBDIR)/libtutti.a
	@install -m 755 $(BUILT)/tutti-peer-check $(ROOT)/bin/tutti-peer-check
	@install -m 644 include/tutti.h include/tutti.hpp $(ROOT)/$(INCLUDEDIR)
	@install -m 644 cmake/tutti-targets.cmake $(PACKAGE)
	@$(fill) cmake/tutti-config.cmake.in > $(PACKAGE)/tutti-config.cmake
	@$(fill) cmake/tutti-config-version.cmake.in > $(PACKAGE)/tutti-config-version.cmake
	@$(fill) cmake/tutti.pc.in > $(ROOT)/$(LIBDIR)/pkgconfig/tutti.pc
	@install -m 644 python/tutti.py $(ROOT)/share/tutti/python/tutti.py
	@install -m 644 LICENSE $(ROOT)/share/doc/tutti/LICENSE

uninstall: ## remove what `make install` put below PREFIX
	@rm -rf $(PACKAGE) $(ROOT)/share/tutti $(ROOT)/share/doc/tutti
	@rm -f $(ROOT)/$(LIBDIR)/libtutti.so* $(ROOT)/$(LIBDIR)/libtutti.a $(ROOT)/$(LIBDIR)/pkgconfig/tutti.pc \
	    $(ROOT)/bin/tutti-peer-check $(ROOT)/$(INCLUDEDIR)/tutti.h $(ROOT)/$(INCLUDEDIR)/tutti.hpp

clean: ## remove everything that was built
	@rm -rf $(TARGET) build dist

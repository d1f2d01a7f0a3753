# heraldfs. `make demo` shows it, `make test` tests it; each installs what it needs.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
BIN     := bin/heraldfs
AGENT   := bin/heraldfs-agent
# What the agent may measure, in bytes: a guest's initramfs has it in memory.
AGENT_MAX := 10000000
SUDO    := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
TARGETS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64 freebsd/amd64 freebsd/arm64
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: all build agent demo test quick check bench install uninstall man clean fuzz parity

all: build

build: $(BIN)

## agent: the guest's part alone, static and small; GOARCH=arm64 make agent for another guest
agent: FORCE
	CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -ldflags='-s -w' -o $(AGENT) ./cmd/heraldfs-agent
	@size=$$(wc -c < $(AGENT)); [ $$size -lt $(AGENT_MAX) ] || { echo "$(AGENT) has $$size bytes, more than $(AGENT_MAX)"; exit 1; }

$(BIN): FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./cmd/heraldfs
FORCE:

## demo: host changes heard natively and through a mount, side by side (root, /dev/fuse)
demo: build
	$(SUDO) ./$(BIN) demo

## test: everything under the race detector, one package at a time: some tests change kernel-wide limits
test:
	sh scripts/test-deps.sh
	$(GO) test -p 1 -count=1 -race -timeout 20m ./...

## quick: the same without the race detector
quick:
	sh scripts/test-deps.sh
	$(GO) test -p 1 -count=1 -timeout 15m ./...

## check: formatting, vet, staticcheck, the rules of the packages, cross-builds
check:
	@fmt=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$fmt" ] || { echo "gofmt would change: $$fmt"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test -count=1 ./internal/archtest
	# Counts allocations, which the race detector of make test makes.
	$(GO) test -count=1 -run Alloc ./notify/fusenotify
	@for t in $(TARGETS); do echo "build $$t"; \
		GOOS=$${t%/*} GOARCH=$${t#*/} CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/heraldfs || exit 1; done
	GOOS=darwin CGO_ENABLED=0 $(GO) vet ./cmd/heraldfs ./watcher/portable ./watcher/tree
	GOOS=windows CGO_ENABLED=0 $(GO) vet ./cmd/heraldfs ./watcher/portable ./watcher/tree
	GOOS=freebsd CGO_ENABLED=0 $(GO) vet ./cmd/heraldfs ./watcher/portable ./watcher/tree

## parity: the differential test at full length: 20 seeds of 2,000 operations in each mode
parity:
	HERALDFS_PARITY=full $(GO) test -count=1 -timeout 120m -v ./internal/parity

## fuzz: each fuzz target for a short while
fuzz:
	@for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$pkg/*_test.go | cut -d' ' -f2); do \
			echo "$$pkg $$f"; $(GO) test $$pkg -run '^$$' -fuzz "^$$f\$$" -fuzztime 20s || exit 1; done; done

## bench: the figures of docs/benchmarks.md
bench: build
	sh scripts/bench-deps.sh
	$(SUDO) $(shell command -v $(GO)) run ./internal/bench -plots docs

man: build
	mkdir -p bin/man
	./$(BIN) man bin/man

install: build agent man
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)/sbin
	install -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/heraldfs
	install -m 755 $(AGENT) $(DESTDIR)$(PREFIX)/bin/heraldfs-agent
	ln -sf $(PREFIX)/bin/heraldfs $(DESTDIR)/sbin/mount.heraldfs
	install -m 644 bin/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	./$(BIN) completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/heraldfs
	install -d $(DESTDIR)$(PREFIX)/lib/heraldfs $(DESTDIR)$(PREFIX)/share/doc/heraldfs
	ln -sf ../../bin/heraldfs $(DESTDIR)$(PREFIX)/lib/heraldfs/virtiofsd
	for u in packaging/systemd/*.service packaging/systemd/*.socket; do \
		sed 's,/usr/bin/heraldfs,$(PREFIX)/bin/heraldfs,' $$u > $(DESTDIR)$(PREFIX)/lib/systemd/system/$$(basename $$u) || exit 1; done
	install -m 644 packaging/systemd/*.conf $(DESTDIR)$(PREFIX)/share/doc/heraldfs/

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/heraldfs $(DESTDIR)$(PREFIX)/bin/heraldfs-agent $(DESTDIR)/sbin/mount.heraldfs \
		$(DESTDIR)$(PREFIX)/share/man/man1/heraldfs*.1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/heraldfs $(DESTDIR)$(PREFIX)/lib/systemd/system/heraldfs*@.service \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/heraldfs*@.socket
	rm -rf $(DESTDIR)$(PREFIX)/lib/heraldfs $(DESTDIR)$(PREFIX)/share/doc/heraldfs

clean:
	rm -rf bin

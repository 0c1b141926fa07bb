# Run "make" for the list of targets. Needed: Go and make; for the targets marked
# (Java) also a JDK 17 or newer and Maven.

GO       ?= go
BIN      := .build/bin
VALIDATE := .build/protovalidate/buf/validate/validate.proto
# The revision that "make check" compares the .proto files with.
BASE     ?= main
# How long "make fuzz" gives each target.
FUZZTIME ?= 10s
# How many schedules "make sim" runs; "make test" runs 40 of them.
SCHEDULES ?= 1000
# The folder of conformance cases for "make cases".
CASES    ?=
# How many random cases "make oracle" compares, and the seed of the first.
ORACLE_CASES ?= 20000
ORACLE_SEED  ?= 1

.DEFAULT_GOAL := help
.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

# --- running and testing ---------------------------------------------------

.PHONY: demo
demo: ## enrich 3,708 review sentences on an embedded broker
	$(GO) run ./cmd/millrace demo

.PHONY: test
test: ## unit tests and simulation
	$(GO) test -tags synctests ./...
	@command -v java >/dev/null && command -v mvn >/dev/null || \
		echo "skipped: the tests against Apache Kafka (make integration) and Kafka Streams (make oracle), since Java or Maven is missing"

# The tag has franz-go use locks that fake time passes.
.PHONY: sim
sim: ## SCHEDULES (1000) of random faults in fake time, and the planted bugs
	$(GO) test -tags synctests -count 1 -timeout 40m -run TestSchedules ./internal/sim -schedules $(SCHEDULES)
	$(GO) test -tags synctests -count 1 -run TestPlanted ./internal/engine

.PHONY: race
race: ## the same under the race detector
	$(GO) test -tags synctests -race ./...

# Only the tests in files with the tag, and one package at a time: each starts a
# broker of its own.
INTEGRATION = $$(grep -rl --include='*_test.go' --exclude-dir=.build '^//go:build integration' .)
INTEGRATION_TESTS = -run "^($$(grep -ho '^func Test[A-Za-z0-9]*' $(INTEGRATION) | cut -c6- | paste -sd'|'))$$" $$(dirname $(INTEGRATION) | sort -u)
.PHONY: integration
integration: ## tests against Apache Kafka, transaction.version 1 and 2 (Java)
	$(GO) run ./internal/cmd/kafka -fetch
	MILLRACE_TRANSACTION_VERSION=1 $(GO) test -tags integration -p 1 -count 1 -timeout 20m $(INTEGRATION_TESTS)
	MILLRACE_TRANSACTION_VERSION=2 $(GO) test -tags integration -p 1 -count 1 -timeout 20m $(INTEGRATION_TESTS)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (10s)
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | while IFS=: read -r file line; do \
		echo "$${line#func } ($$(dirname "$$file"))"; \
		$(GO) test -run '^$$' -fuzz "^$${line#func }\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null || exit 1; \
	done

.PHONY: cases
cases: ## one JSON line for each conformance case in the folder CASES
	@test -n "$(CASES)" || { echo 'name the folder: make cases CASES=DIR'; exit 1; }
	$(GO) run ./internal/cmd/cases $(CASES)/*.json

.PHONY: oracle
oracle: ## ORACLE_CASES (20000) random topologies here and on Kafka Streams, row by row (Java)
	$(GO) run ./internal/cmd/oracle -n $(ORACLE_CASES) -seed $(ORACLE_SEED) internal/oracle/testdata/*.json

.PHONY: kafka
kafka: ## run an Apache Kafka on a free port until Ctrl-C (Java)
	$(GO) run ./internal/cmd/kafka

.PHONY: chaos
chaos: ## kill workers and brokers for long, then check every record (Java)
	$(GO) run ./internal/cmd/chaos

.PHONY: chaos-enrich
chaos-enrich: ## 50,000 model calls at 30 % faults while workers are killed, then check everything (Java)
	$(GO) run ./internal/cmd/chaos enrich
	$(GO) run ./internal/cmd/chaos enrich -strict -events 10000 -kills 15

.PHONY: bench
bench: ## Millrace and a bare franz-go loop (Java)
	cd bench && $(GO) run ./cmd/bench -readme README.md -section bench

.PHONY: bench-peers
bench-peers: ## also Kafka Streams and goka (Java)
	cd bench && $(GO) run ./cmd/bench -arms all -suites pass,count,restore,restart,latency,idle -readme README.md -section peers

.PHONY: real-model
real-model: ## 10 sentences through a small language model on this machine (Python, PyPI; takes minutes)
	@GO="$(GO)" sh tools/realmodel/run.sh

.PHONY: bench-llm
bench-llm: ## model calls: slots, memory, CPU, latency, isolation, limits, budgets (Java)
	cd bench && $(GO) run ./cmd/bench -arms millrace -suites slots,inflight,callcpu,added,isolation,storm,budget -readme README.md -section llm

# --- checks ----------------------------------------------------------------

.PHONY: lint
lint: $(BIN)/golangci-lint $(BIN)/buf $(VALIDATE) ## golangci-lint, buf lint, and that bench/, a module of its own, builds
	$(BIN)/golangci-lint run ./...
	$(BIN)/buf lint
	cd bench && $(GO) vet ./...

.PHONY: check
check: check-generated lint check-breaking ## generated code, lint, .proto compatibility and go.mod
	$(GO) mod verify
	$(GO) mod tidy -diff
	cd bench && $(GO) mod tidy -diff

.PHONY: check-generated
check-generated: generate ## fail if the generated code in the tree is not what the .proto files give
	@git diff --exit-code -- '*.pb.go' && \
		test -z "$$(git ls-files --others --exclude-standard -- '*.pb.go' | tee /dev/stderr)" || \
		{ echo 'generated code is not up to date: run "make generate" and commit it'; exit 1; }

# Compares with the files of BASE; there is nothing to compare before it has any.
.PHONY: check-breaking
check-breaking: $(BIN)/buf $(VALIDATE) ## fail if the .proto files are not compatible with BASE (main)
	@if git cat-file -e $(BASE):buf.yaml 2>/dev/null; then \
		rm -rf .build/base && mkdir -p .build/base/.build && \
		git archive $(BASE) | tar -x -C .build/base && \
		cp -r .build/protovalidate .build/base/.build/ && \
		$(BIN)/buf breaking --against .build/base; \
	else echo "no .proto files in $(BASE) to compare with"; fi

# --- tools and generated code ----------------------------------------------

.PHONY: generate
generate: $(BIN)/buf $(VALIDATE) ## generate Go code from the .proto files
	$(BIN)/buf generate

$(BIN)/buf: tools/go.mod
	cd tools && $(GO) build -o ../$@ github.com/bufbuild/buf/cmd/buf

$(BIN)/golangci-lint: tools/go.mod
	cd tools && $(GO) build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# validate.proto comes from the Go module that carries it: no schema registry.
$(VALIDATE): tools/go.mod
	cd tools && $(GO) mod download github.com/bufbuild/protovalidate
	mkdir -p $(@D)
	install -m 644 "$$(cd tools && $(GO) list -m -f '{{.Dir}}' github.com/bufbuild/protovalidate)/proto/protovalidate/buf/validate/validate.proto" $@

# Run "make" for the list of targets. Needed: Go and make; for the targets marked
# (Java) also a JDK 17 or newer and Maven.

GO       ?= go
BIN      := .build/bin
VALIDATE := .build/protovalidate/buf/validate/validate.proto

.DEFAULT_GOAL := help
.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

# --- code generation -------------------------------------------------------

.PHONY: generate
generate: $(BIN)/buf $(VALIDATE) ## generate Go code from the .proto files
	$(BIN)/buf generate

$(BIN)/buf: tools/go.mod
	cd tools && $(GO) build -o ../$(BIN)/buf github.com/bufbuild/buf/cmd/buf

# validate.proto comes from the Go module that carries it: no schema registry.
$(VALIDATE): tools/go.mod
	cd tools && $(GO) mod download github.com/bufbuild/protovalidate
	mkdir -p $(@D)
	install -m 644 "$$(cd tools && $(GO) list -m -f '{{.Dir}}' github.com/bufbuild/protovalidate)/proto/protovalidate/buf/validate/validate.proto" $@

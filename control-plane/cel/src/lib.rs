//! CEL expressions as Kubernetes evaluates them.

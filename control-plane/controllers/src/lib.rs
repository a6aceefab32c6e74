//! The controllers: each a pure reconcile over informers.

//! The end-to-end harness over `balsa local`, its scenarios and benchmarks.

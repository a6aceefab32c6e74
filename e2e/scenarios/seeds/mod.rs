//! The manifests of the documents that Balsa was first asked to run, with their mistakes mended (and, where the
//! mistake is the point, with the refusal that it deserves).

mod basics;
mod pods;
mod probes;

//! One way to talk to an API server: a kube::Client over TLS to several servers, or in process; informers and work queues.

//! The cluster's CA, certificates, join tokens, service account token keys and kubeconfig files.

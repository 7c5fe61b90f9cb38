//! OCI bundles and the OCI runtime.

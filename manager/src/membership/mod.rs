//! Who is alive: SWIM-style probes, suspicion and refutation.

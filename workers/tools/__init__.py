"""Tools beside the jobs: parity with the live teacher, probes of the machine."""

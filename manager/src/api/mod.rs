//! The control service and the command line.

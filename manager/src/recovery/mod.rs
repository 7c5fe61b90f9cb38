//! Carrying out what policy decides, one container at a time.

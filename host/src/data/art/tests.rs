//! Tests of the paintings as a whole.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::*;

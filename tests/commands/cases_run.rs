//! What happens to a run from outside: cases 53 to 57, 59, 62 to 72 and 77 of the table in `cases.rs`.

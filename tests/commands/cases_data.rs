//! What is wrong with datasets, images, rewards and options: cases 27 to 45, 51, 52, 78 and 80 to 82 of the table in
//! `cases.rs`.

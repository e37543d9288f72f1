//! Replays of captures made by hand: odd files in `formats`, connections in `tcp`, the committed ones in `committed`, changed
//! ones in `hostile`.

mod captures;
mod committed;
mod formats;
mod hostile;
mod tcp;

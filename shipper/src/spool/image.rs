//! The ledger's marks in the state file, and back.
//!
//! Records are not in it: they are found by reading the log.

use std::collections::VecDeque;

use bytes::Bytes;
use weir_schema::values::{LossReason, LossStage};

use super::epoch::{Amount, Epoch, Tombstone};
use super::ledger::{Alias, Ledger};
use super::record::{CaptureKey, Id, RecordError, SavedKey, id, required};
use super::state::{SavedAlias, SavedEpoch, SavedTombstone, State};

const WHAT: &str = "spool state";

/// What the state file says.
#[derive(Debug)]
pub(crate) struct Image {
    pub shipper: Id,
    /// Without entries.
    pub ledger: Ledger,
    /// The last interval that was dropped instead of appended, and the log's next position then.
    pub dropped: Option<Dropped>,
}

/// An interval that has numbers but no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub key: CaptureKey,
    pub position: u64,
}

/// The state to be saved.
pub(crate) fn save(shipper: Id, ledger: &Ledger, dropped: Option<Dropped>) -> State {
    let Ledger { epochs, aliases, journal, pending: _ } = ledger;
    let tombstones = epochs.iter().flat_map(|epoch| {
        let of = bytes(&epoch.id);
        epoch.tombstones.iter().map(move |tombstone| {
            let Tombstone { from, to, stage, reason, events, bytes, first_ns, last_ns } = *tombstone;
            let (stage, reason) = (stage.code(), reason.code());
            SavedTombstone { epoch: of.clone(), from, to, stage, reason, events, bytes, first_ns, last_ns }
        })
    });
    State {
        shipper: bytes(&shipper),
        journal: journal.as_ref().map(bytes).unwrap_or_default(),
        epochs: epochs
            .iter()
            .map(|epoch| {
                let Epoch { id, acked, sent, next, entries: _, tombstones: _ } = epoch;
                SavedEpoch { epoch: bytes(id), acked: *acked, sent: *sent, next: *next }
            })
            .collect(),
        tombstones: tombstones.collect(),
        aliases: aliases
            .iter()
            .map(|alias| SavedAlias { from: bytes(&alias.from), base: alias.base, to: bytes(&alias.to) })
            .collect(),
        dropped_key: dropped.map(|dropped| SavedKey::from(dropped.key)),
        dropped_position: dropped.map_or(0, |dropped| dropped.position),
    }
}

/// Checks a saved state. It has a right checksum, so an error means another program or version.
pub(crate) fn load(state: &State) -> Result<Image, RecordError> {
    let journal = state.journal()?;
    let State { shipper, journal: _, epochs, tombstones, aliases, dropped_key, dropped_position } = state;
    let mut ledger = Ledger {
        epochs: VecDeque::with_capacity(epochs.len()),
        aliases: Vec::with_capacity(aliases.len()),
        journal,
        pending: Amount::default(),
    };
    for SavedEpoch { epoch, acked, sent, next } in epochs {
        if *next == 0 || *acked >= *next {
            return Err(RecordError::Field { what: WHAT, field: "acked", value: *acked });
        }
        let epoch =
            Epoch { acked: *acked, sent: *sent, next: *next, ..Epoch::new(id(WHAT, "epoch", epoch)?) };
        ledger.epochs.push_back(epoch);
    }
    if ledger.epochs.is_empty() {
        return Err(RecordError::Field { what: WHAT, field: "epochs", value: 0 });
    }
    for saved in tombstones {
        let SavedTombstone { epoch, from, to, stage, reason, events, bytes, first_ns, last_ns } =
            saved.clone();
        let field = |field, value| RecordError::Field { what: WHAT, field, value };
        let epoch = id(WHAT, "tombstone.epoch", &epoch)?;
        let stage = LossStage::from_code(stage).ok_or(field("tombstone.stage", u64::from(stage)))?;
        let reason = LossReason::from_code(reason).ok_or(field("tombstone.reason", u64::from(reason)))?;
        let epoch =
            ledger.epochs.iter_mut().find(|other| other.id == epoch).ok_or(field("tombstone.epoch", from))?;
        let after = epoch.tombstones.back().map_or(epoch.acked, |before| before.to);
        if from <= after || from > to || to >= epoch.next {
            return Err(field("tombstone.from", from));
        }
        let tombstone = Tombstone { from, to, stage, reason, events, bytes, first_ns, last_ns };
        epoch.tombstones.push_back(tombstone);
    }
    for SavedAlias { from, base, to } in aliases {
        let alias = Alias { from: id(WHAT, "alias.from", from)?, base: *base, to: id(WHAT, "alias.to", to)? };
        ledger.aliases.push(alias);
    }
    let dropped = dropped_key.as_ref().map(|key| required(WHAT, Some(key))).transpose()?;
    let dropped = dropped.map(|key| Dropped { key, position: *dropped_position });
    Ok(Image { shipper: id(WHAT, "shipper", shipper)?, ledger, dropped })
}

fn bytes(id: &Id) -> Bytes {
    Bytes::copy_from_slice(id)
}

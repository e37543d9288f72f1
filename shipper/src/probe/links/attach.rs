//! Loads the programs for a namespace's links, attaches them, and pins what holds them.
//!
//! A pin is named `link_tc_<namespace>_<index>_<i or e>_<name in hex>`; below kernel 6.6 it is the program of a filter
//! that `clsact` has added, else a TCX link. Used by `watch` on its thread, and by `Links`.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::Program};

use super::clsact;
use crate::probe::{
    CaptureConfig, KernelFeatures, LinkGlobals, open_object,
    programs::words,
    sys::{self, Tcx},
};

/// Both programs, loaded for the links of one namespace.
pub(crate) struct Programs(Ebpf);

impl Programs {
    /// The one for a direction.
    pub(crate) fn program(&self, direction: Tcx) -> io::Result<BorrowedFd<'_>> {
        let program = self.0.program(name(direction)).ok_or(io::ErrorKind::NotFound)?;
        program.fd().map(AsFd::as_fd).map_err(io::Error::other)
    }
}

fn name(direction: Tcx) -> &'static str {
    match direction {
        Tcx::Ingress => "link_ingress",
        Tcx::Egress => "link_egress",
    }
}

/// Loads programs once for each namespace and kind of header: an interface's index alone says too little.
pub(crate) struct Loader {
    features: KernelFeatures,
    config: CaptureConfig,
    directory: PathBuf,
    loaded: HashMap<(u32, bool), Programs>,
}

impl Loader {
    /// For maps that are pinned in `directory`.
    pub(crate) fn new(features: KernelFeatures, config: CaptureConfig, directory: PathBuf) -> Self {
        Self { features, config, directory, loaded: HashMap::new() }
    }

    /// The programs for a namespace's links.
    pub(crate) fn programs(&mut self, namespace: u32, ethernet: bool) -> Result<&Programs, String> {
        let Self { features, config, directory, loaded } = self;
        if let std::collections::hash_map::Entry::Vacant(place) = loaded.entry((namespace, ethernet)) {
            let globals = LinkGlobals { namespace, ethernet };
            let mut object =
                open_object(features, config, directory, globals).map_err(|error| words(&error))?;
            for direction in [Tcx::Ingress, Tcx::Egress] {
                match object.program_mut(name(direction)) {
                    Some(Program::SchedClassifier(program)) => {
                        program.load().map_err(|error| words(&error))?;
                    }
                    _ => return Err("the kernel object does not have it".to_owned()),
                }
            }
            place.insert(Programs(object));
        }
        loaded.get(&(namespace, ethernet)).ok_or_else(|| "the kernel object does not have it".to_owned())
    }

    /// Forgets the programs of a namespace; the ones that are attached stay.
    pub(crate) fn forget(&mut self, namespace: u32) {
        self.loaded.retain(|(other, _), _| *other != namespace);
    }

    /// Whether any were needed so far.
    pub(crate) fn is_unused(&self) -> bool {
        self.loaded.is_empty()
    }

    /// The pins of all links, of those that are gone too.
    pub(crate) fn pinned(&self) -> Vec<Pin> {
        pinned(&self.directory).unwrap_or_default()
    }

    /// Where a link's programs are pinned.
    pub(crate) fn pin(&self, link: u64, direction: Tcx, name: &str) -> PathBuf {
        let (namespace, index) = (link >> 32, link & 0xffff_ffff);
        let side = match direction {
            Tcx::Ingress => 'i',
            Tcx::Egress => 'e',
        };
        let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(format!("{PREFIX}{namespace:x}_{index:x}_{side}_{hex}"))
    }

    /// Attaches both programs to a link of the namespace that this thread is in, or replaces the ones that are there.
    pub(crate) fn attach(&mut self, link: u64, ethernet: bool, name: &str) -> Result<(), AttachError> {
        let (namespace, index) = ((link >> 32) as u32, link as u32);
        for direction in [Tcx::Egress, Tcx::Ingress] {
            let pin = self.pin(link, direction, name);
            let programs = self.programs(namespace, ethernet).map_err(AttachError::Load)?;
            let program = programs.program(direction).map_err(AttachError::Attach)?;
            attach(program, index, direction, &pin).map_err(AttachError::Attach)?;
        }
        Ok(())
    }
}

/// Why a link is not captured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The kernel refuses the programs.
    #[error("load the programs: {0}")]
    Load(String),
    /// The kernel refuses the place.
    #[error("attach the programs")]
    Attach(#[source] io::Error),
}

impl AttachError {
    /// The link went meanwhile.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Attach(error) if error.raw_os_error() == Some(libc::ENODEV))
    }
}

fn attach(program: BorrowedFd<'_>, index: u32, direction: Tcx, pin: &Path) -> io::Result<()> {
    if pin.exists() {
        let held = sys::obj_get(pin)?;
        match sys::link_ifindex(held.as_fd()) {
            Ok(attached) if attached == index => match sys::link_update(held.as_fd(), program) {
                Ok(()) => return Ok(()),
                // The link went and another one has its index: a new one is needed.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(error),
            },
            // A dead one, or the program of a filter, which is replaced in place.
            _ => {}
        }
        drop(held);
        fs::remove_file(pin)?;
    }
    match sys::link_create_tcx(program, index, direction) {
        Ok(link) => sys::obj_pin(pin, link.as_fd()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            clsact::replace(program, index, direction)?;
            sys::obj_pin(pin, program)
        }
        Err(error) => Err(error),
    }
}

/// Takes a program off its link; its pin stays. A link that is gone has none.
pub(crate) fn detach(pin: &Pin) -> io::Result<()> {
    let held = sys::obj_get(&pin.path)?;
    match sys::link_ifindex(held.as_fd()) {
        Ok(0) => Ok(()),
        Ok(_) => sys::link_detach(held.as_fd()),
        Err(_) => clsact::remove_anywhere(pin.link, pin.direction),
    }
}

const PREFIX: &str = "link_tc_";

/// What the name of a pin tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    pub path: PathBuf,
    pub link: u64,
    pub direction: Tcx,
    pub name: String,
}

/// The pins of all links, of those that are gone too.
pub(crate) fn pinned(directory: &Path) -> io::Result<Vec<Pin>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        found.extend(parse(entry?.path()));
    }
    Ok(found)
}

fn parse(path: PathBuf) -> Option<Pin> {
    let rest = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let mut parts = rest.split('_');
    let namespace = u32::from_str_radix(parts.next()?, 16).ok()?;
    let index = u32::from_str_radix(parts.next()?, 16).ok()?;
    let direction = match parts.next()? {
        "i" => Tcx::Ingress,
        "e" => Tcx::Egress,
        _ => return None,
    };
    let hex = parts.next()?.as_bytes();
    let bytes = hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let name = String::from_utf8_lossy(&bytes.collect::<Option<Vec<u8>>>()?).into_owned();
    Some(Pin { link: u64::from(namespace) << 32 | u64::from(index), direction, name, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_tells_its_link() {
        let loader = Loader::new(KernelFeatures::default(), CaptureConfig::default(), "/x".into());
        for (link, direction, name) in
            [(7, Tcx::Ingress, "eth0"), (0xffff_ffff_0000_0002, Tcx::Egress, "blue/a.10")]
        {
            let path = loader.pin(link, direction, name);
            let pin = Pin { path: path.clone(), link, direction, name: name.to_owned() };
            assert_eq!(parse(path), Some(pin));
        }
        for name in ["link_connect4", "link_tc_", "link_tc_1_2_x_", "link_tc_g_2_i_"] {
            assert_eq!(parse(PathBuf::from(name)), None, "{name}");
        }
    }
}

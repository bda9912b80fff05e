//! Function symbols and the build id of an ELF file: the full path of each function, which line tables lack.
//!
//! In: a file of this process's mappings (64 bit, little endian). Out: names by address in the file, the build id.
//! Never: trust in a length or offset of the file; what does not fit is as if absent.
//!
//! Format: the System V ABI, chapters 4 and 5; build id: `.note.gnu.build-id` of GNU ld.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// No table of a real program is larger; a damaged header must not exhaust memory.
const MAX_TABLE_BYTES: u64 = 256 << 20;

const FILE_HEADER_BYTES: u64 = 64;
const SEGMENT_BYTES: usize = 56;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;

const LOAD: u32 = 1;
const SYMBOL_TABLE: u32 = 2;
const NOTE: u32 = 7;
const DYNAMIC_SYMBOLS: u32 = 11;
const FUNCTION: u8 = 2;
const BUILD_ID: u32 = 3;

/// What is used of one file.
#[derive(Debug, Default)]
pub(super) struct ElfFile {
    /// Parts of the file and where they are meant to lie in memory.
    segments: Vec<Segment>,
    /// By address.
    symbols: Vec<Symbol>,
    names: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    offset: u64,
    address: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Symbol {
    address: u64,
    bytes: u64,
    name: usize,
}

#[derive(Debug)]
struct Section {
    kind: u32,
    link: u32,
    offset: u64,
    bytes: u64,
}

impl ElfFile {
    /// Reads a file; nothing is known of one that is not ELF or cannot be read.
    pub(super) fn read(path: &Path) -> Self {
        File::open(path).ok().and_then(|file| Self::parse(&file)).unwrap_or_default()
    }

    /// Reads only the build id, as hexadecimal digits; empty without one.
    pub(super) fn read_build_id(path: &Path) -> String {
        let build_id = |file: &File| Some(find_build_id(file, &sections(file, &header(file)?)?));
        File::open(path).ok().as_ref().and_then(build_id).unwrap_or_default()
    }

    /// The linker's name of the function whose code stands at `offset` in the file.
    pub(super) fn symbol_at(&self, offset: u64) -> Option<&[u8]> {
        let inside = |segment: &&Segment| {
            (segment.offset..segment.offset.saturating_add(segment.bytes)).contains(&offset)
        };
        let segment = self.segments.iter().find(inside)?;
        let address = segment.address.checked_add(offset - segment.offset)?;
        let after = self.symbols.partition_point(|symbol| symbol.address <= address);
        let symbol = self.symbols[..after].last()?;
        // Hand-written functions have size 0.
        let in_symbol = symbol.bytes == 0 || address - symbol.address < symbol.bytes;
        let name = self.names.get(symbol.name..).filter(|_| in_symbol)?;
        name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())
    }

    fn parse(file: &File) -> Option<Self> {
        let header = header(file)?;
        let sections = sections(file, &header)?;
        let table = [SYMBOL_TABLE, DYNAMIC_SYMBOLS]
            .iter()
            .find_map(|kind| sections.iter().find(|section| section.kind == *kind))?;
        let names = sections.get(usize::try_from(table.link).ok()?)?;
        let mut symbols: Vec<_> =
            table.read(file)?.chunks_exact(SYMBOL_BYTES).filter_map(symbol).collect();
        symbols.sort_unstable_by_key(|symbol| symbol.address);
        Some(Self { segments: segments(file, &header)?, symbols, names: names.read(file)? })
    }
}

impl Section {
    fn read(&self, file: &File) -> Option<Vec<u8>> {
        read(file, self.offset, self.bytes)
    }
}

fn header(file: &File) -> Option<Vec<u8>> {
    let header = read(file, 0, FILE_HEADER_BYTES)?;
    // 2: 64 bit; 1: little endian.
    header.starts_with(b"\x7fELF\x02\x01").then_some(header)
}

fn segments(file: &File, header: &[u8]) -> Option<Vec<Segment>> {
    let bytes = u64::from(u16_at(header, 56)?) * u64::try_from(SEGMENT_BYTES).ok()?;
    let table = read(file, u64_at(header, 32)?, bytes)?;
    let segments =
        table.chunks_exact(SEGMENT_BYTES).filter(|segment| u32_at(segment, 0) == Some(LOAD));
    segments
        .map(|segment| {
            Some(Segment {
                offset: u64_at(segment, 8)?,
                address: u64_at(segment, 16)?,
                bytes: u64_at(segment, 32)?,
            })
        })
        .collect()
}

fn sections(file: &File, header: &[u8]) -> Option<Vec<Section>> {
    let bytes = u64::from(u16_at(header, 60)?) * u64::try_from(SECTION_BYTES).ok()?;
    let table = read(file, u64_at(header, 40)?, bytes)?;
    let section = |section: &[u8]| {
        Some(Section {
            kind: u32_at(section, 4)?,
            link: u32_at(section, 40)?,
            offset: u64_at(section, 24)?,
            bytes: u64_at(section, 32)?,
        })
    };
    table.chunks_exact(SECTION_BYTES).map(section).collect()
}

fn symbol(entry: &[u8]) -> Option<Symbol> {
    let defined = u16_at(entry, 6)? != 0;
    let function = entry[4] & 0xf == FUNCTION;
    (defined && function).then_some(Symbol {
        address: u64_at(entry, 8)?,
        bytes: u64_at(entry, 16)?,
        name: usize::try_from(u32_at(entry, 0)?).ok()?,
    })
}

fn find_build_id(file: &File, sections: &[Section]) -> String {
    let notes = sections.iter().filter(|section| section.kind == NOTE);
    let mut ids = notes.filter_map(|section| {
        let note = section.read(file)?;
        let (name, id) =
            (usize::try_from(u32_at(&note, 0)?).ok()?, usize::try_from(u32_at(&note, 4)?).ok()?);
        let start = 12 + name.next_multiple_of(4);
        let is_build_id = u32_at(&note, 8)? == BUILD_ID && note.get(12..15)? == b"GNU";
        is_build_id.then(|| note.get(start..start.checked_add(id)?).map(<[u8]>::to_vec))?
    });
    ids.next().unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(file: &File, offset: u64, bytes: u64) -> Option<Vec<u8>> {
    let mut buffer =
        vec![0; usize::try_from(Some(bytes).filter(|bytes| *bytes <= MAX_TABLE_BYTES)?).ok()?];
    file.read_exact_at(&mut buffer, offset).ok()?;
    Some(buffer)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Reads `bytes` as a file of code, and the name of what lies at `offset`. For fuzzing.
#[cfg(any(fuzzing, test))]
pub fn read_any_elf(bytes: &[u8], offset: u64) {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    let mut file = super::sys::memory_file(c"fuzzed-elf").expect("the kernel has memory files");
    file.write_all(bytes).expect("a memory file can be written");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let id = ElfFile::read_build_id(Path::new(&path));
    assert!(id.len() <= 2 * bytes.len(), "a build id that the file does not hold");
    let elf = ElfFile::read(Path::new(&path));
    if let Some(name) = elf.symbol_at(offset) {
        assert!(!name.is_empty() && name.len() <= bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check_unreadable(content: &[u8]) {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(content).expect("a temporary file can be written");
        let elf = ElfFile::read(file.path());
        assert!(elf.symbols.is_empty() && elf.symbol_at(0).is_none());
        assert_eq!(ElfFile::read_build_id(file.path()), "");
    }

    #[test]
    fn a_file_that_is_not_elf_has_no_symbols() {
        check_unreadable(b"#!/bin/sh\n");
        check_unreadable(b"");
    }

    #[test]
    fn a_header_that_points_past_the_file_has_no_symbols() {
        let mut header = vec![0xff; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        check_unreadable(&header);
    }

    #[test]
    fn this_executable_has_functions() {
        let elf = ElfFile::read(Path::new("/proc/self/exe"));
        assert!(elf.symbols.len() > 1000, "{}", elf.symbols.len());
        assert!(!elf.segments.is_empty());
    }
}

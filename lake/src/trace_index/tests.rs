use std::collections::BTreeMap;
use std::ops::Range;

use super::build::tests::section;
use super::*;
use crate::testing::Draw;

const A: [u8; 16] = [0xaa; 16];
const B: [u8; 16] = [0xbb; 16];

/// What a reader of the whole file does.
fn find(index: &[u8], ids: &[[u8; 16]]) -> Result<(TraceIndex, Blocks), DamagedIndex> {
    let Head::Read(directory) = TraceIndex::read(index)? else { return Err(DamagedIndex) };
    let mut found = Blocks::new();
    for id in ids {
        let Some(leaf) = directory.leaf(id) else { continue };
        let range = leaf.range.start as usize..leaf.range.end as usize;
        directory.find(leaf, index.get(range).ok_or(DamagedIndex)?, id, &mut found)?;
    }
    Ok((directory, found))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two data files, of which the second has the number 2: `A` in both row groups of the first, `B` in the first one and in
/// the other file.
fn small() -> Vec<u8> {
    let first = section(4, &[vec![A, B], vec![A]]);
    encode(&[(0, first), (2, section(4, &[vec![B]]))]).expect("has entries").to_vec()
}

#[test]
fn version_1_is_written_as_it_was() {
    let golden = "5344425449445831002000003800000061c8e9dd7661b3ee020000000000000002000000020000000100000002000000\
                  01000000010000000100000052e9ef383b79e07022000000cb822a29ac4272d852e9ef383b79e07000010052e9ef383b\
                  79e070010100ee7835c844cf0dcb00020001";
    assert_eq!(hex(&small()), golden);
}

#[test]
fn rows_are_found_in_their_files_and_row_groups() {
    let (index, found) = find(&small(), &[A]).expect("reads");
    let rows = |number, blocks: &Blocks| {
        let rows = index.rows(number, blocks)?;
        let ends = |ranges: Vec<Range<usize>>| ranges.iter().map(|range| (range.start, range.end)).collect();
        Some(rows.groups.into_iter().map(|group| (group.rows, ends(group.ranges))).collect::<Vec<(_, Vec<_>)>>())
    };
    assert_eq!(rows(0, &found), Some(vec![(2, vec![(0, 2)]), (1, vec![(0, 1)])]));
    assert_eq!(rows(2, &found), Some(vec![(1, vec![])]));
    assert_eq!(rows(1, &found), None, "not indexed");
    let (_, both) = find(&small(), &[A, B]).expect("reads");
    assert_eq!(rows(2, &both), Some(vec![(1, vec![(0, 1)])]));
    let (_, none) = find(&small(), &[[1; 16], [0xff; 16]]).expect("reads");
    assert!(none.is_empty());
    assert!(index.covers(0, 3, Some(2)) && index.covers(0, 3, None) && index.covers(2, 1, Some(1)));
    assert!(!index.covers(0, 4, Some(2)) && !index.covers(0, 3, Some(1)) && !index.covers(1, 3, None));
}

#[test]
fn files_without_a_trace_have_no_index() {
    assert_eq!(encode(&[]), None);
    assert_eq!(encode(&[(0, section(4, &[]))]), None);
}

/// Every bit that is flipped, and every length but the right one, is noticed, or changes nothing that is asked for.
#[test]
fn damage_is_noticed() {
    let (whole, wanted) = (small(), find(&small(), &[A, B]).expect("reads"));
    for at in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        assert_eq!(find(&damaged, &[A, B]), Err(DamagedIndex), "bit {at}");
    }
    for length in 0..whole.len() {
        assert_eq!(find(&whole[..length], &[A, B]), Err(DamagedIndex), "{length} bytes");
    }
    assert_eq!(find(&[whole.as_slice(), b"more"].concat(), &[A, B]), Ok(wanted));
    let mut newer = whole;
    newer[7] = b'2';
    assert_eq!(TraceIndex::read(&newer), Err(DamagedIndex));
}

/// Many traces over many leaves: each is found where it is, and nearly nowhere else.
#[test]
fn each_of_many_traces_is_found_where_it_is() {
    const GROUP_ROWS: usize = 20_000;
    let (mut draw, mut expected) = (Draw(5), BTreeMap::<u64, Blocks>::new());
    let id = |trace: u64| trace.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(2);
    let mut sections = Vec::new();
    for number in [3, 1, 7] {
        let mut groups = Vec::new();
        let mut block = 0;
        for rows in [GROUP_ROWS, 9000, 1] {
            let mut group = Vec::new();
            for row in 0..rows {
                let trace = draw.below(4000);
                expected.entry(trace).or_default().insert((number, block + row as u32 / 8192));
                group.push(id(trace).try_into().expect("16 bytes"));
            }
            block += (rows as u32).div_ceil(8192);
            groups.push(group);
        }
        sections.push((number, section(GROUP_ROWS, &groups)));
    }
    let index = encode(&sections).expect("has entries");
    let Ok(Head::Read(directory)) = TraceIndex::read(&index) else { panic!("reads") };
    assert!(directory.leaves.len() > 3, "{} leaves", directory.leaves.len());
    assert!(directory.leaves.iter().all(|leaf| leaf.range.end - leaf.range.start < 2 * LEAF_BYTES as u64));
    assert_eq!(directory.leaves.last().map(|leaf| leaf.range.end), Some(index.len() as u64));
    for (trace, blocks) in expected {
        let (_, found) = find(&index, &[id(trace).try_into().expect("16 bytes")]).expect("reads");
        assert_eq!(found, blocks, "trace {trace}");
    }
}

#[test]
fn a_directory_that_is_longer_than_what_was_read_says_how_long_it_is() {
    let whole = small();
    let Ok(Head::Needs(needed)) = TraceIndex::read(&whole[..HEADER_BYTES + 10]) else { panic!("is cut") };
    assert!(matches!(TraceIndex::read(&whole[..needed as usize]), Ok(Head::Read(_))));
}

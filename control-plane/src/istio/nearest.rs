//! Hints for names that nearly are known ones.

/// The name in `known` with the smallest edit distance to `name`, if it is near.
pub(super) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let lower = name.to_lowercase();
    let near = known.map(|known| (strsim::osa_distance(&lower, &known.to_lowercase()), known));
    let most = |known: &str| (known.len().min(name.len()) / 3).clamp(1, 4);
    near.min()
        .filter(|(distance, known)| *distance <= most(known))
        .map(|(_, known)| known)
}

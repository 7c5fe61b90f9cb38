//! A specification written as a Compose file by another library is read back as itself.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::spec::{Mac, NetworkSpec};

fn render(specs: &[ContainerSpec]) -> String {
    // As a block scalar it writes "\n" in a form that reads as "".
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(&super::super::render::file(specs), options).unwrap()
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[^\0]{0,10}",
        Just("true".into()),
        Just("null".into()),
        Just("~".into()),
        Just("- a: [b".into()),
        "[0-9.]{1,5}"
    ]
}

fn words() -> impl Strategy<Value = Option<Vec<String>>> {
    option::of(vec(any_text(), 0..3))
}

fn duration() -> impl Strategy<Value = Duration> {
    (100u64..100_000).prop_map(Duration::from_millis)
}

fn mount_source() -> impl Strategy<Value = MountSource> {
    prop_oneof![
        "/[a-z$ ]{1,8}".prop_map(|path| MountSource::HostBind { path: path.into() }),
        option::of(1u64..1 << 40).prop_map(|size_bytes| MountSource::Tmpfs { size_bytes }),
        "[a-z0-9]{1,6}".prop_map(|name| MountSource::Volume { name }),
    ]
}

/// Mounts with targets of their own, and named volumes that no other service uses.
fn mounts(index: usize) -> impl Strategy<Value = Vec<Mount>> {
    vec((mount_source(), any::<bool>()), 0..4).prop_map(move |mounts| {
        let with_place = |(place, (source, read_only)): (usize, (MountSource, bool))| Mount {
            source: match source {
                MountSource::Volume { name } => MountSource::Volume { name: format!("{name}_{index}_{place}") },
                other => other,
            },
            target: format!("/m/{place}").into(),
            read_only,
        };
        mounts.into_iter().enumerate().map(with_place).collect()
    })
}

fn state() -> impl Strategy<Value = (StateKind, RecoveryPolicy)> {
    let stateful = (duration(), 1u32..100, any::<bool>()).prop_map(|(sensitivity, max, cold)| {
        let mut steps = vec![RecoveryStep::Failover, RecoveryStep::OlderSnapshot { max }];
        steps.extend(cold.then_some(RecoveryStep::ColdStart));
        (StateKind::Stateful { sensitivity }, RecoveryPolicy { steps })
    });
    prop_oneof![stateful, Just((StateKind::Stateless, RecoveryPolicy::stateless_default()))]
}

fn healthcheck() -> impl Strategy<Value = Healthcheck> {
    let interval = || duration().prop_map(|duration| duration.max(Duration::from_millis(10)));
    let start = (duration(), option::of(interval()));
    (vec(any_text(), 1..3), interval(), duration(), start, 1u32..1000)
        .prop_filter("a program", |(argv, ..)| !argv[0].is_empty())
        .prop_map(|(argv, interval, timeout, (start_period, start_interval), retries)| Healthcheck {
            argv,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        })
}

fn restart_policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![
        Just(RestartPolicy::No),
        Just(RestartPolicy::Always),
        Just(RestartPolicy::UnlessStopped),
        option::of(1u32..9).prop_map(|max| RestartPolicy::OnFailure { max }),
    ]
}

fn spec(index: usize) -> impl Strategy<Value = ContainerSpec> {
    let process = (words(), words(), proptest::collection::btree_map("[A-Z_]{1,5}", any_text(), 0..3));
    let names = (
        option::of("/[a-z$]{0,8}"),
        option::of("[a-z_][a-z0-9]{0,5}(:[0-9]{1,4})?"),
        option::of("[a-z]([a-z0-9-]{0,5}[a-z0-9])?"),
    );
    let outside = (mounts(index), any::<bool>(), option::of(healthcheck()), restart_policy(), any::<bool>());
    let rest = (state(), (1u32..1000, 1u32..1000), option::of((0u64..1000, option::of(1000u64..5000))), any_text());
    (process, names, outside, rest).prop_map(
        move |((entrypoint, command, environment), (working_dir, user, hostname), outside, rest)| {
            let (mounts, addressed, healthcheck, restart, depends) = outside;
            let ((state, recovery), (keep, keep_manual), limit, annotation) = rest;
            let last = u8::try_from(index).unwrap() + 1;
            ContainerSpec {
                name: format!("c{index}").parse().unwrap(),
                image: format!("/images/{index}$"),
                entrypoint,
                command,
                environment,
                working_dir,
                user,
                hostname,
                mounts,
                network: NetworkSpec {
                    ipv4: addressed.then(|| Ipv4Addr::new(10, 77, 1, last)),
                    mac: addressed.then_some(Mac([2, 0, 0, 0, 0, last])),
                },
                healthcheck,
                // On the one before: in the order of the file there is no circle.
                depends_on: (depends && index > 0)
                    .then(|| Dependency {
                        name: format!("c{}", index - 1).parse().unwrap(),
                        condition: Condition::Started,
                    })
                    .into_iter()
                    .collect(),
                restart,
                rlimits: limit
                    .map(|(soft, hard)| Rlimit { name: "nofile".into(), soft, hard: hard.unwrap_or(u64::MAX) })
                    .into_iter()
                    .collect(),
                state,
                keep,
                keep_manual,
                recovery,
                annotations: [("org.example.note".to_owned(), annotation)].into(),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_rendered_file_is_read_back(specs in (spec(0), spec(1), spec(2)).prop_map(|(a, b, c)| vec![a, b, c])) {
        let rendered = render(&specs);
        let read = parse(&rendered, "rendered.yaml", &no_variables);
        let read = read.map_err(|errors| TestCaseError::fail(format!("{errors}\n{rendered}")))?;
        prop_assert_eq!(read.containers, specs, "{}", rendered);
    }
}

//! `doctor`: this node's own checks, and what the store says.

use super::{CliError, args, print, print_json, progress};
use crate::{
    config::NodeConfig,
    doctor::{self, Check},
    node,
    store::{Store, StoreError},
};

pub(super) async fn examine(args: args::Doctor) -> Result<(), CliError> {
    let config = NodeConfig::load(&args.config).map_err(|err| CliError::Input(crate::chain(&err)))?;
    let working =
        progress::working("looking at this node: a process is dumped and restored, a store object created twice");
    let of_store = store_checks(&config).await;
    let checked = tokio::task::spawn_blocking(move || doctor::run(&config, &args.config)).await;
    drop(working);
    let mut checks = checked.map_err(|err| CliError::Input(format!("the checks ended abnormally: {err}")))?;
    checks.extend(of_store);
    if args.json {
        print_json(&doctor::render_json(&checks))?;
    } else {
        print(doctor::render_text(&checks).trim_end())?;
    }
    if doctor::exit_code(&checks) == 0 { Ok(()) } else { Err(CliError::Unfit) }
}

async fn store_checks(config: &NodeConfig) -> [Check; 2] {
    const SETTINGS: (&str, &str) = ("cluster.settings", "the other nodes");
    match ask_store(config).await {
        Ok(store) => {
            let found = format!("{} creates an object once only", config.store);
            [Check::ok("store.create-only", "store", found), settings(config, &store, SETTINGS).await]
        }
        Err(error) => {
            let keyless = config.store.scheme() == "s3" && std::env::var_os("AWS_ACCESS_KEY_ID").is_none();
            let remedy = match &error {
                _ if keyless => {
                    "AWS_ACCESS_KEY_ID is not set here: run doctor with the environment that the manager's service has"
                }
                StoreError::Emptied { .. } | StoreError::OtherStore { .. } => {
                    "mount the store that this node was in, or correct the URL: the manager does not start with this one"
                }
                _ => "every node needs the same store, writable, with create-only writes (docs/formats.md)",
            };
            let failed = Check::fail("store.create-only", "store", crate::chain(&error), remedy);
            [failed, Check::not_applicable(SETTINGS.0, SETTINGS.1, "the store has to answer first")]
        }
    }
}

/// Nothing is written to a store that is not this node's.
async fn ask_store(config: &NodeConfig) -> Result<Store, StoreError> {
    let store = Store::open(config.store.as_str()).await?;
    node::examine_store(&store, config).await?;
    store.probe_create_only().await?;
    Ok(store)
}

/// What has to be the same on every node, as far as the store knows of it.
async fn settings(config: &NodeConfig, store: &Store, (id, title): (&'static str, &'static str)) -> Check {
    let records = match store.node_records().await {
        Ok(records) => records,
        Err(error) => return Check::warn(id, title, crate::chain(&error), "see what the store says of it"),
    };
    let differences = node::differences(config, &records);
    if differences.is_empty() {
        return Check::ok(id, title, format!("{} registered; their lease times are this node's", records.len()));
    }
    const REMEDY: &str =
        "give every node the same `pace`, `[lease]`, `quorum` and `voters`, and start their managers again";
    Check::warn(id, title, differences.join("; "), REMEDY)
}

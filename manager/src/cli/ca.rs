//! `ha-manager ca`: the cluster's authority and the certificates of its nodes, made on whichever machine keeps the key.

use chrono::{DateTime, Utc};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{CliError, args, print};
use crate::tls::{
    ca,
    files::{self, CA_CERT, CA_KEY, NODE_CERT, NODE_KEY},
    identity::{self, Subject},
};

pub fn run(command: args::Ca) -> Result<(), CliError> {
    match command {
        args::Ca::Init(args) => init(&args),
        args::Ca::Issue(args) => issue(&args),
    }
}

fn init(args::CaInit { cluster, dir, days, force }: &args::CaInit) -> Result<(), CliError> {
    let made = ca::authority(cluster.as_str(), Utc::now(), *days).map_err(failed)?;
    files::write_authority(dir, &made, *force).map_err(|error| CliError::Input(crate::chain(&error)))?;
    let (_, until) = read(&made.certificate)?;
    let shown = dir.display();
    print(&format!(
        "The authority of cluster {cluster}, valid until {until}:\n  \
         {shown}/{CA_KEY}  its private key (0600): whoever has it can make nodes of this cluster\n  \
         {shown}/{CA_CERT}  its certificate: `ha-manager ca issue` puts it beside every node's\n\
         Next, for each node: ha-manager ca issue NODE --dir {shown}"
    ))
}

fn issue(args::CaIssue { node, dir, out, days, force }: &args::CaIssue) -> Result<(), CliError> {
    let authority = files::authority(dir).map_err(|error| {
        CliError::Input(format!("{}; `ha-manager ca init` makes an authority, --dir names it", crate::chain(&error)))
    })?;
    let (subject, _) = read(&authority.certificate)?;
    let Subject::Authority { cluster } = subject else {
        return Err(CliError::Input(format!("{}/{CA_CERT} is not the certificate of an authority", dir.display())));
    };
    let wanted = Subject::Node { cluster: cluster.clone(), node: node.clone() };
    let made = ca::issue(&authority, &wanted, Utc::now(), *days).map_err(failed)?;
    let out = out.clone().unwrap_or_else(|| dir.join(node.as_str()));
    files::write_node(&out, &authority.certificate, &made, *force)
        .map_err(|error| CliError::Input(crate::chain(&error)))?;
    let (_, until) = read(&made.certificate)?;
    let shown = out.display();
    print(&format!(
        "The certificate of node {node} of cluster {cluster}, valid until {until}:\n  \
         {shown}/{NODE_KEY}  its private key (0600)\n  \
         {shown}/{NODE_CERT}  its certificate\n  \
         {shown}/{CA_CERT}    the authority's\n\
         All three belong on {node} only, in the directory that `dir` of [tls] in its configuration names \
         (default /etc/ha-manager/tls)."
    ))
}

fn failed(error: rcgen::Error) -> CliError {
    CliError::Input(format!("the certificate cannot be made: {error}"))
}

/// Whom a certificate is for, and its last day.
fn read(pem: &str) -> Result<(Subject, String), CliError> {
    let unreadable = |why: String| CliError::Input(format!("the certificate cannot be read: {why}"));
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
    let facts = identity::read(&der).map_err(|error| unreadable(error.to_string()))?;
    let until = DateTime::from_timestamp(facts.ends, 0).map(|at| at.date_naive().to_string()).unwrap_or_default();
    Ok((facts.subject, until))
}

//! What a container runs, from the application's words and the image's.

use super::ImageError;
use crate::spec::{ContainerSpec, ImageConfig};

/// The program and its arguments, by the rules of OCI and Compose: an entry point given by the application replaces the
/// image's and drops the image's command with it; a command given replaces the image's command.
pub fn argv(spec: &ContainerSpec, config: &ImageConfig) -> Result<Vec<String>, ImageError> {
    resolve(spec.entrypoint.as_deref(), spec.command.as_deref(), config)
}

fn resolve(
    entrypoint: Option<&[String]>,
    command: Option<&[String]>,
    config: &ImageConfig,
) -> Result<Vec<String>, ImageError> {
    let image_cmd = if entrypoint.is_some() { &[][..] } else { &config.cmd };
    let argv = [entrypoint.unwrap_or(&config.entrypoint), command.unwrap_or(image_cmd)].concat();
    match argv.first() {
        Some(program) if !program.is_empty() => Ok(argv),
        _ => Err(ImageError::NoCommand),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_oci_and_compose() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let config = ImageConfig { entrypoint: words("/entry -x"), cmd: words("serve"), ..ImageConfig::default() };
        let run = |entrypoint: Option<&str>, command: Option<&str>, config: &ImageConfig| {
            resolve(entrypoint.map(words).as_deref(), command.map(words).as_deref(), config)
        };
        assert_eq!(run(None, None, &config).unwrap(), words("/entry -x serve"));
        assert_eq!(run(None, Some("other"), &config).unwrap(), words("/entry -x other"));
        assert_eq!(run(None, Some(""), &config).unwrap(), words("/entry -x"));
        assert_eq!(run(Some("/mine"), None, &config).unwrap(), words("/mine"));
        assert_eq!(run(Some("/mine"), Some("a b"), &config).unwrap(), words("/mine a b"));
        assert_eq!(run(Some(""), Some("/sh"), &config).unwrap(), words("/sh"));
        assert!(matches!(run(Some(""), None, &config), Err(ImageError::NoCommand)));
        let bare = super::super::manifest::bare_configuration();
        assert!(matches!(run(None, None, &bare), Err(ImageError::NoCommand)));
        assert!(matches!(resolve(Some(&[String::new()]), None, &bare), Err(ImageError::NoCommand)));
    }
}

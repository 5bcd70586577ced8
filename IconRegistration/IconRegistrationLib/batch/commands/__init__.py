"""The commands of `icon-registration`, one file each."""

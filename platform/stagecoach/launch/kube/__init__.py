"""What our cluster launchers share: the API client, watches, pods, their logs. No JobSet and no Volcano in here."""

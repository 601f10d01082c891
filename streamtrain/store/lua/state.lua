-- Answers the applied epoch.

return stranger() or {'ok', applied_epoch() or -1}

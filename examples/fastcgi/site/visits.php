<?php
// A session: PHP keeps it in the tenant's own /tmp.
declare(strict_types=1);
require __DIR__ . '/lib.inc.php';

session_start(['cookie_httponly' => true, 'cookie_samesite' => 'Lax', 'use_strict_mode' => true]);
if (isset($_GET['forget'])) {
    session_destroy();
    header("Location: {$_SERVER['SCRIPT_NAME']}", true, 303);
    return;
}
$visits = $_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;
page('A session', "<p>You have been here <output>$visits</output> times.</p>"
    . '<p><a href="visits.php">Again</a>, <a href="visits.php?forget=1">forget me</a>, <a href="./">back</a></p>');

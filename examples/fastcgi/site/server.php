<?php
// What a script is told.
declare(strict_types=1);

header('Content-Type: text/plain; charset=utf-8');
ksort($_SERVER);
foreach ($_SERVER as $key => $value) {
    if (is_scalar($value)) {
        echo "$key: $value\n";
    }
}
echo 'uid: ', function_exists('posix_geteuid') ? posix_geteuid() : getmyuid(), "\n";
